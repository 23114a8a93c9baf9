use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Deref;
use std::process::Command;

use rustix::process::Signal;

use crate::instance::Instance;
use crate::java::{ClassArchive, java};
use crate::process::{Server, Spec};
use crate::{Artifact, Error, default_version, place};

const ATTEMPTS: usize = 3;

/// One Kafka broker, its own controller (`KRaft`). Topics are not created by use and have 8 partitions by default.
///
/// Starting, breaking and stopping it are [`Server`]'s methods. Dropping it kills it and removes its folder.
#[derive(Debug)]
pub struct Kafka {
    server: Server,
    address: SocketAddr,
    instance: Instance,
}

impl Kafka {
    /// Starts a broker and waits until it is ready.
    ///
    /// # Errors
    /// It could not be obtained or did not start, with its last log lines.
    pub fn start() -> Result<Self, Error> {
        retry_on_taken_port(Self::launch)
    }

    /// `127.0.0.1:<port>`, for clients.
    pub fn bootstrap(&self) -> String {
        self.address.to_string()
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Leaves its folder, with data and logs, when the handle is dropped.
    pub fn keep(&self) {
        self.instance.keep();
    }

    fn launch() -> Result<Self, Error> {
        let artifact = Artifact::kafka(default_version::KAFKA);
        let class_path = artifact.class_path()?;
        let java = java()?;
        let instance = Instance::new("kafka")?;
        let folder = instance.path().to_owned();
        let ip = Ipv4Addr::LOCALHOST;
        let [port, controller] = place::free_ports(ip)?;
        let address = SocketAddr::from((ip, port));
        let (properties, log) = (folder.join("server.properties"), folder.join("server.log"));
        let data = folder.join("data");
        place::write(
            &properties,
            format!(
                "process.roles=broker,controller
node.id=1
controller.quorum.voters=1@{ip}:{controller}
listeners=PLAINTEXT://{ip}:{port},CONTROLLER://{ip}:{controller}
advertised.listeners=PLAINTEXT://{ip}:{port}
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs={}
num.partitions=8
auto.create.topics.enable=false
default.replication.factor=1
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
",
                data.display()
            ),
        )?;
        let log_config = folder.join("log4j2.properties");
        place::write(
            &log_config,
            format!(
                "appender.file.type=File
appender.file.name=file
appender.file.fileName={}
appender.file.layout.type=PatternLayout
appender.file.layout.pattern=[%d] %p %m (%c)%n
rootLogger.level=INFO
rootLogger.appenderRef.file.ref=file
",
                log.display()
            ),
        )?;
        let jvm: Vec<String> = vec![
            "-Xmx512m".into(),
            "-XX:+UseSerialGC".into(),
            // As for Cassandra: the optimising compiler does not pay within a few minutes.
            "-XX:TieredStopAtLevel=1".into(),
            "-XX:+ExitOnOutOfMemoryError".into(),
            format!("-Dlog4j2.configurationFile={}", log_config.display()),
            "-cp".into(),
            class_path,
        ];
        let archive = ClassArchive::new(&artifact, &folder);
        let format = Command::new(java)
            .args(archive.use_flag())
            // It ends before optimised code pays.
            .arg("-XX:TieredStopAtLevel=1")
            .args(&jvm)
            .args(["kafka.tools.StorageTool", "format", "--cluster-id", &cluster_id()?, "--config"])
            .arg(&properties)
            .output()
            .map_err(Error::io("start", java))?;
        if !format.status.success() {
            let output = folder.join("format.out");
            place::write(&output, [format.stdout, format.stderr].concat())?;
            let (command, status) = ("kafka.tools.StorageTool format", format.status.to_string());
            return Err(Error::Command { command, status, tail: place::tail(&output, 15) });
        }
        fs::create_dir_all(&data).map_err(Error::io("create", &data))?;
        let mut args: Vec<_> = [archive.flag()].into_iter().chain(jvm).map(Into::into).collect();
        args.extend(["kafka.Kafka".into(), properties.into()]);
        let server = Server::new(Spec {
            label: format!("kafka {} on {address}", default_version::KAFKA),
            output: folder.join("output.log"),
            folder,
            program: java.to_owned(),
            args,
            log,
            ready: "Kafka Server started",
            addresses: vec![address],
            stop: Signal::TERM,
            user: None,
            archive: Some(archive),
        });
        let kafka = Self { server, address, instance };
        kafka.server.start().inspect_err(|_| kafka.keep())?;
        Ok(kafka)
    }
}

impl Deref for Kafka {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.server
    }
}

/// Another process may take a port between the look at it and the server's start.
pub(crate) fn retry_on_taken_port<T>(mut launch: impl FnMut() -> Result<T, Error>) -> Result<T, Error> {
    for _ in 1..ATTEMPTS {
        match launch() {
            Err(err) if err.is_port_taken() => {}
            done => return done,
        }
    }
    launch()
}

/// 16 bytes in URL-safe base 64 without padding; every hexadecimal digit is one of its digits, the last must be one
/// whose lower four bits are zero.
fn cluster_id() -> Result<String, Error> {
    Ok(place::random_name()?.chars().take(21).chain(['A']).collect())
}

use std::ffi::OsString;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::thread;

use rustix::process::Signal;

use crate::instance::Instance;
use crate::java::{ClassArchive, java};
use crate::kafka::retry_on_taken_port;
use crate::process::{Server, Spec};
use crate::{Artifact, Error, artifact::full_version, default_version, place};

const CQL_PORT: u16 = 9042;
const STORAGE_PORT: u16 = 7000;

/// Cassandra reaches into the JDK; its own start script grants the same.
const EXPORTS: [&str; 9] = [
    "java.base/jdk.internal.misc",
    "java.base/jdk.internal.ref",
    "java.base/sun.nio.ch",
    "java.management.rmi/com.sun.jmx.remote.internal.rmi",
    "java.rmi/sun.rmi.registry",
    "java.rmi/sun.rmi.server",
    "java.sql/java.sql",
    "jdk.unsupported/sun.misc",
    "jdk.attach/sun.tools.attach",
];
const OPENS: [&str; 35] = [
    "java.base/java.lang.module",
    "java.base/jdk.internal.loader",
    "java.base/jdk.internal.ref",
    "java.base/jdk.internal.reflect",
    "java.base/jdk.internal.math",
    "java.base/jdk.internal.module",
    "java.base/jdk.internal.util.jar",
    "jdk.management/com.sun.management.internal",
    "java.base/sun.nio.ch",
    "java.base/java.io",
    "java.base/java.lang",
    "java.base/java.lang.reflect",
    "java.base/java.util",
    "java.base/java.nio",
    "java.base/java.util.concurrent",
    "java.base/java.util.concurrent.atomic",
    "java.base/jdk.internal.misc",
    // 4.0 and 4.1 measure a prepared statement by walking over all it refers to.
    "java.base/java.lang.invoke",
    "java.base/java.lang.ref",
    "java.base/java.math",
    "java.base/java.net",
    "java.base/java.nio.charset",
    "java.base/java.nio.file",
    "java.base/java.security",
    "java.base/java.text",
    "java.base/java.time",
    "java.base/java.util.concurrent.locks",
    "java.base/java.util.function",
    "java.base/java.util.regex",
    "java.base/java.util.stream",
    "java.base/sun.nio.cs",
    "java.base/sun.nio.fs",
    "java.base/sun.util.calendar",
    "java.base/sun.util.locale",
    "java.base/sun.util.locale.provider",
];

/// What a JVM must be told to run Cassandra's classes.
pub(crate) fn jdk_access() -> impl Iterator<Item = String> {
    let exports = EXPORTS.iter().map(|package| format!("--add-exports={package}=ALL-UNNAMED"));
    exports.chain(OPENS.iter().map(|package| format!("--add-opens={package}=ALL-UNNAMED")))
}

/// One node or three, with change data capture switched on. Dropping it kills them and removes their folders.
#[derive(Debug)]
pub struct Cassandra {
    nodes: Vec<Node>,
    instance: Instance,
}

/// One node. Starting, breaking and stopping it are [`Server`]'s methods.
#[derive(Debug)]
pub struct Node {
    server: Server,
    address: SocketAddr,
    folder: PathBuf,
}

/// What can be chosen about a cluster.
#[derive(Debug, Clone)]
pub struct CassandraBuilder {
    version: String,
    nodes: usize,
    commitlog_segment_size_mib: u32,
    cdc_total_space_mib: u32,
    commitlog_sync_period_ms: u32,
    commitlog_compression: Option<String>,
    heap_mib: Option<u32>,
    settings: Vec<(String, String)>,
}

impl Cassandra {
    pub fn builder() -> CassandraBuilder {
        CassandraBuilder {
            version: default_version::CASSANDRA.to_owned(),
            nodes: 1,
            commitlog_segment_size_mib: 32,
            cdc_total_space_mib: 8192,
            commitlog_sync_period_ms: 10_000,
            commitlog_compression: None,
            heap_mib: None,
            settings: Vec::new(),
        }
    }

    /// Starts one node of the default version and waits until it is ready.
    ///
    /// # Errors
    /// As [`CassandraBuilder::start`].
    pub fn start() -> Result<Self, Error> {
        Self::builder().start()
    }

    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// # Panics
    /// There is no node of that index.
    pub fn node(&self, index: usize) -> &Node {
        &self.nodes[index]
    }

    /// `127.x.y.z:9042` of every node, for drivers.
    pub fn contact_points(&self) -> Vec<String> {
        self.nodes.iter().map(Node::address).collect()
    }

    /// Leaves the folder of the cluster, with data and logs, when the handle is dropped.
    pub fn keep(&self) {
        self.instance.keep();
    }
}

impl Node {
    /// `127.x.y.z:<port>`, where it speaks CQL.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    pub fn socket_address(&self) -> SocketAddr {
        self.address
    }

    pub fn ip(&self) -> IpAddr {
        self.address.ip()
    }

    /// Its `cassandra.yaml`.
    pub fn config_file(&self) -> PathBuf {
        self.folder.join("cassandra.yaml")
    }

    pub fn cdc_raw_dir(&self) -> PathBuf {
        self.folder.join("cdc_raw")
    }

    pub fn commitlog_dir(&self) -> PathBuf {
        self.folder.join("commitlog")
    }

    pub fn data_dir(&self) -> PathBuf {
        self.folder.join("data")
    }
}

impl Deref for Node {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.server
    }
}

impl CassandraBuilder {
    /// One of the pinned versions, or its beginning: 4.1.9, 4.1, 4.
    #[must_use]
    pub fn version(mut self, version: &str) -> Self {
        self.version = full_version("cassandra", version);
        self
    }

    /// 1, or 3 on neighbouring addresses and the same port.
    #[must_use]
    pub fn nodes(mut self, nodes: usize) -> Self {
        self.nodes = nodes;
        self
    }

    /// Small segments are switched and completed often. MiB; 32 by default.
    #[must_use]
    pub fn commitlog_segment_size_mib(mut self, mib: u32) -> Self {
        self.commitlog_segment_size_mib = mib;
        self
    }

    /// Cassandra rejects writes to captured tables once `cdc_raw` holds as much. MiB; 8192 by default.
    #[must_use]
    pub fn cdc_total_space_mib(mut self, mib: u32) -> Self {
        self.cdc_total_space_mib = mib;
        self
    }

    /// Milliseconds; 10,000 by default, as Cassandra's own.
    #[must_use]
    pub fn commitlog_sync_period_ms(mut self, ms: u32) -> Self {
        self.commitlog_sync_period_ms = ms;
        self
    }

    /// A compressor such as `LZ4Compressor`; none by default.
    #[must_use]
    pub fn commitlog_compression(mut self, compressor: Option<&str>) -> Self {
        self.commitlog_compression = compressor.map(str::to_owned);
        self
    }

    /// Encrypts the commit log with key `testing:1` of a keystore of this type; the password is the key's as well.
    #[must_use]
    pub fn commitlog_encryption(self, keystore: &str, store_type: &str, password: &str) -> Self {
        self.setting(
            "transparent_data_encryption_options",
            &format!(
                "{{enabled: true, chunk_length_kb: 64, cipher: AES/CBC/PKCS5Padding, key_alias: 'testing:1', \
                 key_provider: [{{class_name: org.apache.cassandra.security.JKSKeyProvider, parameters: [{{\
                 keystore: '{keystore}', keystore_password: {password}, store_type: {store_type}, key_password: {password}}}]}}]}}"
            ),
        )
    }

    /// Of each node. MiB; 512 by default, 400 each for three.
    #[must_use]
    pub fn heap_mib(mut self, mib: u32) -> Self {
        self.heap_mib = Some(mib);
        self
    }

    /// A further line of `cassandra.yaml`, the value as YAML; not one that is set already.
    #[must_use]
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Starts the nodes and waits until each is ready and sees the others.
    ///
    /// # Errors
    /// The release could not be obtained, or a node did not start, with its last log lines.
    pub fn start(&self) -> Result<Cassandra, Error> {
        retry_on_taken_port(|| self.launch())
    }

    fn launch(&self) -> Result<Cassandra, Error> {
        let count = match self.nodes {
            1 => 1,
            3 => 3,
            nodes => return Err(Error::Nodes { nodes }),
        };
        let class_path = Artifact::cassandra(&self.version).class_path()?;
        let instance = Instance::new("cassandra")?;
        let ips = place::free_addresses(count, [CQL_PORT, STORAGE_PORT])?;
        let nodes = ips.iter().map(|ip| self.node(instance.path(), *ip, ips[0], &class_path));
        let cluster = Cassandra { nodes: nodes.collect::<Result<_, _>>()?, instance };
        cluster.start_all().inspect_err(|_| cluster.keep())?;
        Ok(cluster)
    }

    fn node(&self, cluster: &Path, ip: Ipv4Addr, seed: Ipv4Addr, class_path: &str) -> Result<Node, Error> {
        let folder = cluster.join(ip.to_string());
        fs::create_dir_all(folder.join("tmp")).map_err(Error::io("create", &folder))?;
        let (log, log_config) = (folder.join("system.log"), folder.join("logback.xml"));
        let config = folder.join("cassandra.yaml");
        place::write(&config, self.yaml(&folder, ip, seed))?;
        place::write(
            &log_config,
            format!(
                r#"<configuration>
<appender name="file" class="ch.qos.logback.core.FileAppender"><file>{}</file>
<encoder><pattern>%-5level [%thread] %date{{ISO8601}} %F:%L - %msg%n</pattern></encoder></appender>
<root level="INFO"><appender-ref ref="file"/></root>
</configuration>
"#,
                log.display()
            ),
        )?;
        let address = SocketAddr::from((ip, CQL_PORT));
        let java = java()?;
        // None is recorded for a JVM with an agent.
        let archive = (!self.is_4()).then(|| ClassArchive::new(&Artifact::cassandra(&self.version), &folder));
        let mut args = self.args(&folder, &config, &log_config, class_path)?;
        args.splice(0..0, archive.iter().map(|archive| archive.flag().into()));
        let server = Server::new(Spec {
            label: format!("cassandra {} on {address}", self.version),
            folder: folder.clone(),
            program: java.to_owned(),
            args,
            output: folder.join("output.log"),
            log,
            ready: "Starting listening for CQL clients",
            addresses: vec![address],
            stop: Signal::TERM,
            user: None,
            archive,
        });
        Ok(Node { server, address, folder })
    }

    fn args(&self, folder: &Path, config: &Path, logs: &Path, class_path: &str) -> Result<Vec<OsString>, Error> {
        let heap = self.heap_mib.unwrap_or(if self.nodes == 1 { 512 } else { 400 });
        let [jmx_port] = place::free_ports(Ipv4Addr::LOCALHOST)?;
        // Nodes that meet no other within twice that time give up ("Unable to gossip with any peers").
        let ring_delay_ms = if self.nodes == 1 { 100 } else { 5_000 };
        let mut args = vec![
            format!("-Xms{heap}m"),
            format!("-Xmx{heap}m"),
            // Half the start of G1 on so small a heap and so few processors.
            "-XX:+UseSerialGC".to_owned(),
            // A server of a few minutes spends more on the optimising compiler than it gets back: 17 of 41 processor
            // seconds in a demo, taken from everything else on the machine.
            "-XX:TieredStopAtLevel=1".to_owned(),
            "-XX:+ExitOnOutOfMemoryError".to_owned(),
            "-XX:-UsePerfData".to_owned(),
            // Native libraries unpacked there are removed with the folder.
            format!("-Djava.io.tmpdir={}", folder.join("tmp").display()),
            format!("-Dcassandra.config=file://{}", config.display()),
            format!("-Dcassandra.storagedir={}", folder.display()),
            format!("-Dlogback.configurationFile={}", logs.display()),
            format!("-Dcassandra.jmx.local.port={jmx_port}"),
            "-Dcassandra-foreground=yes".to_owned(),
            "-Dcassandra.superuser_setup_delay_ms=0".to_owned(),
            "-Dcassandra.skip_wait_for_gossip_to_settle=0".to_owned(),
            format!("-Dcassandra.ring_delay_ms={ring_delay_ms}"),
            "-Dcassandra.shutdown_announce_in_ms=0".to_owned(),
            // An estimate it makes at every start, for 1.5 s with the default of 100,000.
            "-Dcassandra.memtable_row_overhead_computation_step=1000".to_owned(),
            "-Djdk.attach.allowAttachSelf=true".to_owned(),
        ];
        args.extend(jdk_access());
        if self.is_4() {
            args.push("-Djava.security.manager=allow".to_owned());
            let agent = class_path.split(':').find(|jar| jar.contains("/jamm-"));
            args.extend(agent.map(|jar| format!("-javaagent:{jar}")));
        }
        args.extend([
            "-cp".to_owned(),
            class_path.to_owned(),
            "org.apache.cassandra.service.CassandraDaemon".to_owned(),
        ]);
        Ok(args.into_iter().map(OsString::from).collect())
    }

    fn is_4(&self) -> bool {
        self.version.starts_with("4.")
    }

    fn yaml(&self, folder: &Path, ip: Ipv4Addr, seed: Ipv4Addr) -> String {
        let (segment, space, sync) =
            (self.commitlog_segment_size_mib, self.cdc_total_space_mib, self.commitlog_sync_period_ms);
        let sizes = if self.version.starts_with("4.0.") {
            format!(
                "cdc_total_space_in_mb: {space}
commitlog_sync_period_in_ms: {sync}
commitlog_segment_size_in_mb: {segment}"
            )
        } else {
            format!(
                "cdc_total_space: {space}MiB
commitlog_sync_period: {sync}ms
commitlog_segment_size: {segment}MiB"
            )
        };
        let tokens = if self.nodes == 1 { 16 } else { 4 };
        let at = folder.display();
        let mut yaml = format!(
            "cluster_name: testkit
num_tokens: {tokens}
partitioner: org.apache.cassandra.dht.Murmur3Partitioner
data_file_directories: ['{at}/data']
commitlog_directory: '{at}/commitlog'
cdc_raw_directory: '{at}/cdc_raw'
hints_directory: '{at}/hints'
saved_caches_directory: '{at}/saved_caches'
cdc_enabled: true
commitlog_sync: periodic
{sizes}
# Idle workers of a stage spin before they sleep; the default of 128 and 32 keeps a small machine busy with that.
native_transport_max_threads: 8
concurrent_reads: 8
concurrent_writes: 8
concurrent_counter_writes: 8
seed_provider:
  - class_name: org.apache.cassandra.locator.SimpleSeedProvider
    parameters: [{{seeds: '{seed}:{STORAGE_PORT}'}}]
listen_address: {ip}
rpc_address: {ip}
native_transport_port: {CQL_PORT}
storage_port: {STORAGE_PORT}
endpoint_snitch: SimpleSnitch
auto_bootstrap: false
"
        );
        if let Some(compressor) = &self.commitlog_compression {
            yaml.push_str(&format!("commitlog_compression: [{{class_name: {compressor}}}]\n"));
        }
        for (name, value) in &self.settings {
            yaml.push_str(&format!("{name}: {value}\n"));
        }
        yaml
    }
}

impl Cassandra {
    /// The seed first, then the others at once; a cluster is ready when every node sees every other.
    fn start_all(&self) -> Result<(), Error> {
        let [seed, others @ ..] = self.nodes.as_slice() else { return Ok(()) };
        seed.start()?;
        thread::scope(|scope| {
            let starts: Vec<_> = others.iter().map(|node| scope.spawn(|| node.start())).collect();
            starts.into_iter().try_for_each(|start| start.join().expect("starting a node does not panic"))
        })?;
        self.nodes.iter().try_for_each(|node| {
            let peers = self.nodes.iter().filter(|peer| peer.address != node.address);
            let signs: Vec<_> = peers.map(|peer| format!("{}:{STORAGE_PORT} is now UP", peer.ip())).collect();
            node.wait_until(|log| signs.iter().all(|sign| log.contains(sign)))
        })
    }
}

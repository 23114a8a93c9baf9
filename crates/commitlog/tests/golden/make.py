#!/usr/bin/env python3
"""Makes the golden segments: runs statements.cql against a real Cassandra and keeps the segment they were logged in.

    make.py <file with the class path of cassandra-all> <work folder> <storage_compatibility_mode> <name>

Needs a JDK and the `cassandra-driver` package. Writes <name>.log.gz and <name>.schema.json.gz beside itself. A
mode of CASSANDRA_4 gives segment format 7, NONE gives 8. What the segments must decode to is written down by hand in
../suite/golden.rs, from the statements.
"""
import glob, gzip, json, os, pathlib, re, subprocess, sys, time

class_path, work, mode, name = sys.argv[1:]
here = pathlib.Path(__file__).parent
work = pathlib.Path(work).absolute()
conf = work / "conf"
conf.mkdir(parents=True, exist_ok=True)
PORT = 19742
(conf / "cassandra.yaml").write_text(f"""
cluster_name: golden
num_tokens: 1
partitioner: org.apache.cassandra.dht.Murmur3Partitioner
data_file_directories: [{work}/data]
commitlog_directory: {work}/commitlog
cdc_raw_directory: {work}/cdc_raw
hints_directory: {work}/hints
saved_caches_directory: {work}/saved_caches
cdc_enabled: true
cdc_total_space: 1024MiB
commitlog_sync: periodic
commitlog_sync_period: 10000ms
commitlog_segment_size: 1MiB
commitlog_disk_access_mode: mmap
storage_compatibility_mode: {mode}
seed_provider:
  - class_name: org.apache.cassandra.locator.SimpleSeedProvider
    parameters: [{{seeds: "127.0.0.61:17742"}}]
listen_address: 127.0.0.61
rpc_address: 127.0.0.61
native_transport_port: {PORT}
storage_port: 17742
endpoint_snitch: SimpleSnitch
auto_bootstrap: false
""")
(conf / "logback.xml").write_text(
    '<configuration><appender name="O" class="ch.qos.logback.core.ConsoleAppender"><encoder><pattern>%p %m%n'
    '</pattern></encoder></appender><root level="WARN"><appender-ref ref="O"/></root></configuration>'
)
opens = """exports java.base/jdk.internal.misc java.base/jdk.internal.ref java.base/sun.nio.ch
java.management.rmi/com.sun.jmx.remote.internal.rmi java.rmi/sun.rmi.registry java.rmi/sun.rmi.server java.sql/java.sql
jdk.unsupported/sun.misc jdk.attach/sun.tools.attach
opens java.base/java.lang.module java.base/jdk.internal.loader java.base/jdk.internal.ref java.base/jdk.internal.reflect
java.base/jdk.internal.math java.base/jdk.internal.module java.base/jdk.internal.util.jar
jdk.management/com.sun.management.internal java.base/sun.nio.ch java.base/java.io java.base/java.lang
java.base/java.lang.reflect java.base/java.util java.base/java.nio java.base/java.util.concurrent
java.base/java.util.concurrent.atomic java.base/jdk.internal.misc"""
flags, kind = [], None
for word in opens.split():
    if "/" in word:
        flags += [f"--add-{kind}", f"{word}=ALL-UNNAMED"]
    else:
        kind = word
jars = f"{conf}:{pathlib.Path(class_path).read_text().strip()}"
server = subprocess.Popen(
    ["java", "-Xmx400m", *flags, f"-Dcassandra.config=file://{conf}/cassandra.yaml", f"-Dcassandra.storagedir={work}",
     f"-Dlogback.configurationFile={conf}/logback.xml", "-Dcassandra.jmx.local.port=18742",
     "-Dcassandra-foreground=yes", "-Dcassandra.superuser_setup_delay_ms=0",
     "-Dcassandra.skip_wait_for_gossip_to_settle=0", "-Dcassandra.ring_delay_ms=100",
     "-Djdk.attach.allowAttachSelf=true", "-cp", jars, "org.apache.cassandra.service.CassandraDaemon"],
    stdout=open(work / "server.log", "w"), stderr=subprocess.STDOUT,
)
try:
    from cassandra.cluster import Cluster

    deadline = time.time() + 120
    while True:
        try:
            cluster = Cluster(["127.0.0.61"], port=PORT, protocol_version=4)
            session = cluster.connect()
            break
        except Exception:
            if time.time() > deadline or server.poll() is not None:
                raise
            time.sleep(0.5)
    segments = lambda: sorted(glob.glob(f"{work}/cdc_raw/CommitLog-*.log"))
    text = re.sub(r"--.*", "", (here / "statements.cql").read_text())
    ddl, writes = text.split("BEGIN WRITES")

    def run(part):
        for statement in re.split(r"(?<!\\);\s*\n", part):
            statement = statement.strip().replace("\\;", ";")
            if statement:
                session.execute(statement)

    run(ddl)
    before = segments()
    run(writes)
    time.sleep(0.5)  # markers are written every 100 ms
    after = segments()
    assert before == after, "the statements ran over a segment switch: run again"
    # dropped_time as a number: that of system tables is beyond what the driver calls a date.
    columns = {
        "tables": "keyspace_name, table_name, id, cdc, gc_grace_seconds",
        "columns": "keyspace_name, table_name, column_name, kind, position, clustering_order, type",
        "types": "keyspace_name, type_name, field_names, field_types",
        "dropped_columns": "keyspace_name, table_name, column_name, kind, type, "
                           "blobasbigint(timestampasblob(dropped_time)) AS dropped_time_ms",
    }
    dump = {
        table: [row._asdict() for row in session.execute(f"SELECT {names} FROM system_schema.{table}")]
        for table, names in columns.items()
    }
    used = [s for s in after if open(s, "rb").read()[20:28] != bytes(8)]
    data = open(used[-1], "rb").read().rstrip(b"\0")
    header = os.path.basename(used[-1])
    put = lambda file, raw: (here / file).write_bytes(gzip.compress(raw, 9, mtime=0))
    put(f"{name}.log.gz", data)
    put(f"{name}.schema.json.gz", json.dumps({"segment": header, **dump}, sort_keys=True, default=str).encode())
    print(header, len(data), "bytes, all used:", [os.path.basename(s) for s in used])
finally:
    server.kill()
    server.wait()

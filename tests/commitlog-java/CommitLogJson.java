import java.io.IOException;
import java.io.PrintStream;
import java.lang.management.ManagementFactory;
import java.lang.reflect.Constructor;
import java.lang.reflect.Method;
import java.math.BigDecimal;
import java.math.MathContext;
import java.math.RoundingMode;
import java.net.InetAddress;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Instant;
import java.time.LocalDate;
import java.time.OffsetDateTime;
import java.time.ZoneOffset;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Comparator;
import java.util.HashSet;
import java.util.Iterator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import java.util.UUID;
import java.util.stream.Collectors;
import java.util.stream.Stream;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;

import org.apache.cassandra.config.Config;
import org.apache.cassandra.config.DatabaseDescriptor;
import org.apache.cassandra.cql3.ColumnIdentifier;
import org.apache.cassandra.db.ClusteringBound;
import org.apache.cassandra.db.ClusteringPrefix;
import org.apache.cassandra.db.DeletionTime;
import org.apache.cassandra.db.LivenessInfo;
import org.apache.cassandra.db.Mutation;
import org.apache.cassandra.db.RangeTombstone;
import org.apache.cassandra.db.commitlog.CommitLogDescriptor;
import org.apache.cassandra.db.commitlog.CommitLogReadHandler;
import org.apache.cassandra.db.commitlog.CommitLogReader;
import org.apache.cassandra.db.context.CounterContext;
import org.apache.cassandra.db.marshal.*;
import org.apache.cassandra.db.partitions.PartitionUpdate;
import org.apache.cassandra.db.rows.Cell;
import org.apache.cassandra.db.rows.ColumnData;
import org.apache.cassandra.db.rows.ComplexColumnData;
import org.apache.cassandra.db.rows.Row;
import org.apache.cassandra.schema.CQLTypeParser;
import org.apache.cassandra.schema.ColumnMetadata;
import org.apache.cassandra.schema.KeyspaceMetadata;
import org.apache.cassandra.schema.KeyspaceParams;
import org.apache.cassandra.schema.Schema;
import org.apache.cassandra.schema.TableId;
import org.apache.cassandra.schema.TableMetadata;
import org.apache.cassandra.schema.Tables;
import org.apache.cassandra.schema.Types;
import org.apache.cassandra.utils.ByteBufferUtil;

/**
 * Prints what Cassandra's own reader finds in commit-log segments, in the form of docs/specs/log-json.md.
 *
 * <p>Compiled against the jars of the release whose reader is asked. Bytes become values by Cassandra's code; this
 * program only writes them down.
 */
public final class CommitLogJson
{
    private static final String USAGE =
        "usage: CommitLogJson --schema FILE [--config CASSANDRA_YAML] [--table KS.T]... [--include-system]\n"
        + "                     [--count [--repeat N]] SEGMENT|FOLDER...";

    private static final Set<String> SYSTEM = Set.of("system", "system_schema", "system_auth", "system_distributed",
        "system_traces", "system_views", "system_virtual_schema");

    public static void main(String[] args) throws Exception
    {
        // Standard output is for the changes, whatever Cassandra's classes print while they are loaded.
        PrintStream output = System.out;
        System.setOut(System.err);
        String schema = null, config = null;
        boolean includeSystem = false, count = false;
        int repeat = 1;
        Set<String> tables = new HashSet<>();
        List<Path> segments = new ArrayList<>();
        for (Iterator<String> rest = Arrays.asList(args).iterator(); rest.hasNext(); )
        {
            String arg = rest.next();
            switch (arg)
            {
                case "--schema": schema = rest.next(); break;
                case "--config": config = rest.next(); break;
                case "--table": tables.add(rest.next()); break;
                case "--include-system": includeSystem = true; break;
                case "--count": count = true; break;
                case "--repeat": repeat = Integer.parseInt(rest.next()); break;
                default:
                    if (arg.startsWith("--"))
                        fail(USAGE);
                    segments.addAll(segmentsAt(Path.of(arg)));
            }
        }
        if (schema == null || segments.isEmpty())
            fail(USAGE);

        configure(config, segments);
        loadSchema(new ObjectMapper().readTree(Path.of(schema).toFile()));
        // A large buffer: a line per change would otherwise be a write each.
        PrintStream out = new PrintStream(new java.io.BufferedOutputStream(output, 1 << 16), false, "UTF-8");
        boolean damaged = false;
        if (count)
        {
            for (int pass = 1; pass <= repeat; pass++)
                damaged |= count(pass, segments, tables, includeSystem, out);
        }
        else
        {
            Printer printer = new Printer(tables, includeSystem, out);
            read(printer, segments);
            damaged = printer.damaged;
        }
        out.flush();
        // Cassandra leaves threads behind, and the mutations it could not read.
        try (Stream<Path> left = Files.list(Path.of(System.getProperty("java.io.tmpdir"))))
        {
            left.filter(file -> file.getFileName().toString().matches("mutation\\d+dat"))
                .forEach(file -> file.toFile().delete());
        }
        System.exit(damaged ? 3 : 0);
    }

    private static void fail(String message)
    {
        System.err.println(message);
        System.exit(2);
    }

    private static List<Path> segmentsAt(Path path) throws IOException
    {
        if (!Files.isDirectory(path))
            return List.of(path);
        try (Stream<Path> files = Files.list(path))
        {
            return files.filter(file -> CommitLogDescriptor.isValid(file.getFileName().toString()))
                        .sorted((a, b) -> Long.compare(id(a), id(b)))
                        .collect(Collectors.toList());
        }
    }

    private static long id(Path segment)
    {
        return CommitLogDescriptor.fromFileName(segment.getFileName().toString()).id;
    }

    /** As Cassandra's offline tools start; without a file of the node's, with as little as they accept. */
    private static void configure(String config, List<Path> segments) throws IOException
    {
        Path folder = Files.createTempDirectory("commitlog-json");
        Path logging = folder.resolve("logback.xml");
        Files.writeString(logging, "<configuration><appender name='err' class='ch.qos.logback.core.ConsoleAppender'>"
            + "<target>System.err</target><encoder><pattern>%p %m%n</pattern></encoder></appender>"
            + "<root level='ERROR'><appender-ref ref='err'/></root></configuration>");
        System.setProperty("logback.configurationFile", logging.toString());
        Path file = folder.resolve("cassandra.yaml");
        if (config == null)
        {
            StringBuilder yaml = new StringBuilder("commitlog_sync: batch\n"
                + "partitioner: org.apache.cassandra.dht.Murmur3Partitioner\nendpoint_snitch: SimpleSnitch\n"
                + "seed_provider: [{class_name: org.apache.cassandra.locator.SimpleSeedProvider,"
                + " parameters: [{seeds: 127.0.0.1}]}]\n");
            for (String name : List.of("commitlog_directory", "hints_directory", "saved_caches_directory",
                                       "cdc_raw_directory"))
                yaml.append(name + ": " + folder.resolve(name) + '\n');
            yaml.append("data_file_directories: [" + folder.resolve("data") + "]\n");
            // What a node that writes format 8 is set to; it decides how late a second can be.
            if (segments.stream().anyMatch(segment -> segment.getFileName().toString().startsWith("CommitLog-8-"))
                && hasCompatibilityMode())
                yaml.append("storage_compatibility_mode: NONE\n");
            Files.writeString(file, yaml);
        }
        System.setProperty("cassandra.config", (config == null ? file : Path.of(config)).toUri().toString());
        DatabaseDescriptor.toolInitialization();
        for (Path used : List.of(logging, file, folder))
            Files.deleteIfExists(used);
    }

    /** 5.0 and later. */
    private static boolean hasCompatibilityMode()
    {
        return Stream.of(Config.class.getFields()).anyMatch(field -> field.getName().equals("storage_compatibility_mode"));
    }

    private static void read(CommitLogReadHandler handler, List<Path> segments) throws Exception
    {
        CommitLogReader reader = new CommitLogReader();
        // Its argument is java.io.File in 4.0 and Cassandra's own in later releases.
        Method read = Stream.of(CommitLogReader.class.getMethods())
                            .filter(method -> method.getName().equals("readCommitLogSegment"))
                            .filter(method -> method.getParameterCount() == 3)
                            .filter(method -> method.getParameterTypes()[2] == boolean.class)
                            .findFirst().orElseThrow();
        Constructor<?> file = read.getParameterTypes()[1].getConstructor(String.class);
        for (Path segment : segments)
            read.invoke(reader, handler, file.newInstance(segment.toAbsolutePath().toString()), true);
        reader.getInvalidMutations().forEach(unknown ->
            System.err.println("table " + unknown.getKey() + " is not in the schema: " + unknown.getValue()
                               + " mutations left out"));
    }

    private static boolean count(int pass, List<Path> segments, Set<String> tables, boolean includeSystem,
                                 PrintStream out) throws Exception
    {
        long bytes = 0;
        for (Path segment : segments)
            bytes += Files.size(segment);
        com.sun.management.OperatingSystemMXBean process =
            (com.sun.management.OperatingSystemMXBean) ManagementFactory.getOperatingSystemMXBean();
        Counter counter = new Counter(tables, includeSystem);
        long wall = System.nanoTime(), thread = ManagementFactory.getThreadMXBean().getCurrentThreadCpuTime();
        long processor = process.getProcessCpuTime();
        read(counter, segments);
        out.printf("{\"pass\":%d,\"bytes\":%d,\"entries\":%d,\"rows\":%d,\"cells\":%d,\"processor_seconds\":%.6f,"
                   + "\"thread_seconds\":%.6f,\"wall_seconds\":%.6f}%n",
                   pass, bytes, counter.entries, counter.rows, counter.cells,
                   (process.getProcessCpuTime() - processor) / 1e9,
                   (ManagementFactory.getThreadMXBean().getCurrentThreadCpuTime() - thread) / 1e9,
                   (System.nanoTime() - wall) / 1e9);
        return counter.damaged;
    }

    /** What stops at damage and goes on behind it where Cassandra can. */
    private abstract static class Handler implements CommitLogReadHandler
    {
        private final Set<String> tables;
        private final boolean includeSystem;
        boolean damaged;

        Handler(Set<String> tables, boolean includeSystem)
        {
            this.tables = tables;
            this.includeSystem = includeSystem;
        }

        boolean wanted(TableMetadata table)
        {
            return tables.isEmpty() ? includeSystem || !SYSTEM.contains(table.keyspace)
                                    : tables.contains(table.keyspace + '.' + table.name);
        }

        @Override
        public boolean shouldSkipSegmentOnError(CommitLogReadException exception)
        {
            handleUnrecoverableError(exception);
            return false;
        }

        @Override
        public void handleUnrecoverableError(CommitLogReadException exception)
        {
            damaged = true;
            System.err.println(exception.getMessage());
        }
    }

    private static final class Counter extends Handler
    {
        long entries, rows, cells;

        Counter(Set<String> tables, boolean includeSystem)
        {
            super(tables, includeSystem);
        }

        @Override
        public void handleMutation(Mutation mutation, int size, int position, CommitLogDescriptor segment)
        {
            entries++;
            for (PartitionUpdate update : mutation.getPartitionUpdates())
            {
                if (!wanted(update.metadata()))
                    continue;
                for (Row row : update)
                {
                    rows++;
                    for (Cell<?> cell : row.cells())
                        cells++;
                }
            }
        }
    }

    private static final class Printer extends Handler
    {
        private final PrintStream out;
        private final List<String> lines = new ArrayList<>();

        Printer(Set<String> tables, boolean includeSystem, PrintStream out)
        {
            super(tables, includeSystem);
            this.out = out;
        }

        @Override
        public void handleMutation(Mutation mutation, int size, int position, CommitLogDescriptor segment)
        {
            try
            {
                lines.clear();
                changes(mutation, position, segment);
                lines.forEach(line -> out.append(line).append('\n'));
            }
            catch (RuntimeException e)
            {
                // Read with a schema that was not in force: a field more than the type has.
                damaged = true;
                System.err.println(segment.id + ":" + position + " cannot be printed: " + e);
            }
        }

        private void changes(Mutation mutation, int position, CommitLogDescriptor segment)
        {
            for (PartitionUpdate update : mutation.getPartitionUpdates())
            {
                TableMetadata table = update.metadata();
                if (table.keyspace.equals("system") && table.name.equals("local"))
                    truncations(segment.id, position, update);
                if (!wanted(table))
                    continue;
                DeletionTime partition = update.partitionLevelDeletion();
                if (isDeletion(partition))
                    print(change(segment.id, position, "partition_delete", update).put("deletion", deletion(partition)));
                if (!update.staticRow().isEmpty())
                    print(row(change(segment.id, position, "static", update), update.staticRow()));
                for (Iterator<RangeTombstone> ranges = update.deletionInfo().rangeIterator(false); ranges.hasNext(); )
                {
                    RangeTombstone range = ranges.next();
                    print(change(segment.id, position, "range_delete", update)
                          .put("start", bound(table, range.deletedSlice().start()))
                          .put("end", bound(table, range.deletedSlice().end()))
                          .put("deletion", deletion(range.deletionTime())));
                }
                for (Row row : update)
                    if (!row.isEmpty())
                        print(row(change(segment.id, position, "row", update)
                                  .put("clustering", clustering(table, row.clustering())), row));
            }
        }

        /** SystemKeyspace.truncationAsMapEntry: segment, position, milliseconds. */
        private void truncations(long segment, int position, PartitionUpdate update)
        {
            for (Row row : update)
                for (Cell<?> cell : row.cells())
                {
                    if (!cell.column().name.toString().equals("truncated_at") || cell.isTombstone())
                        continue;
                    ByteBuffer id = cell.path().get(0).duplicate(), value = cell.buffer().duplicate();
                    TableMetadata table =
                        Schema.instance.getTableMetadata(TableId.fromUUID(new UUID(id.getLong(), id.getLong())));
                    if (table == null || !wanted(table))
                        continue;
                    long toSegment = value.getLong();
                    int to = value.getInt();
                    Json at = new Json();
                    if (toSegment >= 0 && to >= 0)
                        at.put("segment", Long.toString(toSegment)).put("position", Integer.toString(to));
                    print(head(segment, position, table, "truncate")
                          .put("truncated_at", at.put("time", Long.toString(value.getLong() * 1000)).end()));
                }
        }

        private void print(Json change)
        {
            lines.add(change.end());
        }
    }

    private static Json change(long segment, int position, String kind, PartitionUpdate update)
    {
        TableMetadata table = update.metadata();
        List<ColumnMetadata> columns = table.partitionKeyColumns();
        ByteBuffer key = update.partitionKey().getKey();
        Json values = new Json();
        if (columns.size() == 1)
        {
            values.put(columns.get(0).name.toString(), Value.of(columns.get(0).type, key));
        }
        else
        {
            ByteBuffer[] parts = ((CompositeType) table.partitionKeyType).split(key);
            for (int i = 0; i < columns.size(); i++)
                values.put(columns.get(i).name.toString(), Value.of(columns.get(i).type, parts[i]));
        }
        return head(segment, position, table, kind).put("partition_key", values.end());
    }

    private static Json head(long segment, int position, TableMetadata table, String kind)
    {
        return new Json().put("segment", Long.toString(segment))
                         .put("position", Integer.toString(position))
                         .put("table", Json.quote(table.keyspace + '.' + table.name))
                         .put("id", Json.quote(table.id.toString()))
                         .put("kind", Json.quote(kind));
    }

    private static Json row(Json change, Row row)
    {
        LivenessInfo marker = row.primaryKeyLivenessInfo();
        if (!marker.isEmpty())
        {
            Json json = new Json().put("time", Long.toString(marker.timestamp()));
            if (marker.ttl() != LivenessInfo.NO_TTL)
                json.put("ttl", Integer.toString(marker.ttl()))
                    .put("expires", Long.toString(marker.localExpirationTime()));
            change.put("marker", json.end());
        }
        if (isDeletion(row.deletion().time()))
            change.put("deletion", deletion(row.deletion().time()));
        List<String> cells = new ArrayList<>(), deletions = new ArrayList<>();
        Map<ByteBuffer, ColumnData> columns = new TreeMap<>(ByteBufferUtil::compareUnsigned);
        for (ColumnData column : row)
            columns.put(column.column().name.bytes, column);
        for (ColumnData column : columns.values())
        {
            if (column instanceof Cell)
            {
                cells.add(cell((Cell<?>) column));
                continue;
            }
            ComplexColumnData complex = (ComplexColumnData) column;
            if (isDeletion(complex.complexDeletion()))
                deletions.add(times(new Json().put("column", Json.quote(column.column().name.toString())),
                                    complex.complexDeletion()));
            for (Cell<?> cell : complex)
                cells.add(cell(cell));
        }
        if (!cells.isEmpty())
            change.put("cells", Json.array(cells));
        if (!deletions.isEmpty())
            change.put("complex_deletions", Json.array(deletions));
        return change;
    }

    private static String cell(Cell<?> cell)
    {
        AbstractType<?> type = cell.column().type;
        Json json = new Json().put("column", Json.quote(cell.column().name.toString()));
        AbstractType<?> valueType = type;
        if (cell.path() != null)
        {
            ByteBuffer path = cell.path().get(0);
            if (type instanceof UserType)
            {
                int field = ByteBufferUtil.toShort(path);
                valueType = ((UserType) type).fieldType(field);
                json.put("path", Json.quote(((UserType) type).fieldNameAsString(field)));
            }
            else
            {
                json.put("path", Value.of(((CollectionType<?>) type).nameComparator(), path));
                valueType = type instanceof SetType ? null : ((CollectionType<?>) type).valueComparator();
            }
        }
        if (cell.isTombstone())
            json.put("deleted", "true");
        else if (cell.isCounterCell())
            json.put("shards", shards(cell.buffer()));
        else if (valueType != null)
            json.put("value", Value.of(valueType, cell.buffer()));
        json.put("time", Long.toString(cell.timestamp()));
        if (cell.ttl() != Cell.NO_TTL)
            json.put("ttl", Integer.toString(cell.ttl()));
        if (cell.localDeletionTime() != Cell.NO_DELETION_TIME)
            json.put("local", Long.toString(cell.localDeletionTime()));
        return json.end();
    }

    private static String shards(ByteBuffer context)
    {
        List<String> shards = new ArrayList<>();
        for (CounterContext.ContextState state = CounterContext.ContextState.wrap(context); state.hasRemaining();
             state.moveToNext())
            shards.add(new Json().put("id", Json.quote(state.getCounterId().toString()))
                                 .put("clock", Long.toString(state.getClock()))
                                 .put("count", Long.toString(state.getCount()))
                                 .put("kind", state.isGlobal() ? "\"global\"" : state.isLocal() ? "\"local\"" : "\"remote\"")
                                 .end());
        return Json.array(shards);
    }

    private static String clustering(TableMetadata table, ClusteringPrefix<?> clustering)
    {
        Json json = new Json();
        for (int i = 0; i < clustering.size(); i++)
        {
            ColumnMetadata column = table.clusteringColumns().get(i);
            json.put(column.name.toString(), Value.of(column.type, clustering.bufferAt(i)));
        }
        return json.end();
    }

    private static String bound(TableMetadata table, ClusteringBound<?> bound)
    {
        return new Json().put("values", clustering(table, bound))
                         .put("inclusive", Boolean.toString(bound.isInclusive()))
                         .end();
    }

    /** Not by isLive, which 5.0 misjudges in what it reads of format 7 (CASSANDRA-21333). */
    private static boolean isDeletion(DeletionTime deletion)
    {
        return deletion.markedForDeleteAt() != Long.MIN_VALUE;
    }

    private static String deletion(DeletionTime deletion)
    {
        return times(new Json(), deletion);
    }

    private static String times(Json json, DeletionTime deletion)
    {
        return json.put("time", Long.toString(deletion.markedForDeleteAt()))
                   .put("local", Long.toString(deletion.localDeletionTime()))
                   .end();
    }

    /** A value by the table of docs/specs/log-json.md. */
    private static final class Value
    {
        static String of(AbstractType<?> type, ByteBuffer bytes)
        {
            if (bytes == null)
                return "null";
            try
            {
                if (bytes.hasRemaining())
                    type.validate(bytes.duplicate());
                return json(type, bytes.duplicate());
            }
            catch (RuntimeException e)
            {
                return new Json().put("invalid", hex(bytes)).end();
            }
        }

        private static String json(AbstractType<?> type, ByteBuffer bytes)
        {
            if (type.isReversed())
                return json(((ReversedType<?>) type).baseType, bytes);
            if (type instanceof BytesType || isCustom(type))
                return hex(bytes);
            if (type instanceof UTF8Type || type instanceof AsciiType)
                return Json.quote((String) type.compose(bytes));
            if (!bytes.hasRemaining())
                return "\"\"";
            if (type instanceof ListType)
                return list(((ListType<?>) type).getElementsType(), bytes);
            if (type instanceof SetType)
                return list(((SetType<?>) type).getElementsType(), bytes);
            if (type instanceof MapType)
                return map((MapType<?, ?>) type, bytes);
            if (type instanceof UserType)
                return user((UserType) type, bytes);
            if (type instanceof TupleType)
            {
                List<String> values = new ArrayList<>();
                for (AbstractType<?> component : ((TupleType) type).allTypes())
                    values.add(bytes.hasRemaining() ? part(component, bytes) : "null");
                return Json.array(values);
            }
            if (type.getClass().getSimpleName().equals("VectorType"))
                return vector(type, bytes);
            Object value = type.compose(bytes);
            if (value instanceof Float || value instanceof Double)
                return number((Number) value);
            if (type instanceof TimestampType)
                return timestamp(((java.util.Date) value).getTime());
            if (type instanceof SimpleDateType)
                return date((Integer) value - (long) Integer.MIN_VALUE);
            if (type instanceof TimeType)
                return time((Long) value);
            if (value instanceof InetAddress)
                return Json.quote(((InetAddress) value).getHostAddress());
            if (value instanceof Number || value instanceof Boolean)
                return value.toString();
            // uuid, timeuuid, duration
            return Json.quote(value.toString());
        }

        /** What is given by its class and has no name in CQL. */
        private static boolean isCustom(AbstractType<?> type)
        {
            return type.asCQL3Type() instanceof org.apache.cassandra.cql3.CQL3Type.Custom
                   && !(type instanceof EmptyType);
        }

        private static String part(AbstractType<?> type, ByteBuffer bytes)
        {
            int length = bytes.getInt();
            if (length < 0)
                return "null";
            ByteBuffer part = bytes.slice();
            part.limit(length);
            bytes.position(bytes.position() + length);
            return json(type, part);
        }

        private static String list(AbstractType<?> elements, ByteBuffer bytes)
        {
            List<String> values = new ArrayList<>();
            for (int count = bytes.getInt(); count > 0; count--)
                values.add(part(elements, bytes));
            return Json.array(values);
        }

        private static String map(MapType<?, ?> type, ByteBuffer bytes)
        {
            Json json = new Json();
            for (int count = bytes.getInt(); count > 0; count--)
            {
                String key = part(type.getKeysType(), bytes);
                json.putQuoted(key.startsWith("\"") ? key : Json.quote(key), part(type.getValuesType(), bytes));
            }
            return json.end();
        }

        private static String user(UserType type, ByteBuffer bytes)
        {
            Json json = new Json();
            for (int i = 0; i < type.size(); i++)
                json.put(type.fieldNameAsString(i), bytes.hasRemaining() ? part(type.fieldType(i), bytes) : "null");
            return json.end();
        }

        private static String vector(AbstractType<?> type, ByteBuffer bytes)
        {
            try
            {
                // 5.0 and later.
                AbstractType<?> element = (AbstractType<?>) type.getClass().getField("elementType").get(type);
                List<String> values = new ArrayList<>();
                for (Object part : (List<?>) type.getClass().getMethod("split", ByteBuffer.class).invoke(type, bytes))
                    values.add(json(element, ((ByteBuffer) part).duplicate()));
                return Json.array(values);
            }
            catch (ReflectiveOperationException e)
            {
                throw new IllegalStateException(e);
            }
        }

        private static String hex(ByteBuffer bytes)
        {
            return "\"0x" + ByteBufferUtil.bytesToHex(bytes) + '"';
        }

        /** The shortest decimal that reads back as the same; Double.toString is not before Java 19. */
        private static String number(Number value)
        {
            double wide = value.doubleValue();
            if (Double.isNaN(wide) || Double.isInfinite(wide))
                return Json.quote(Double.toString(wide));
            if (wide == 0)
                return Double.toString(wide);
            BigDecimal exact = new BigDecimal(wide), shortest = exact;
            for (int digits = 1; digits <= 17; digits++)
            {
                shortest = exact.round(new MathContext(digits, RoundingMode.HALF_UP));
                if (value instanceof Float ? shortest.floatValue() == value.floatValue() : shortest.doubleValue() == wide)
                    break;
            }
            shortest = shortest.stripTrailingZeros();
            boolean isPlain = shortest.scale() < 0 && shortest.precision() - shortest.scale() <= 21;
            return isPlain ? shortest.toPlainString() : shortest.toString();
        }

        private static String timestamp(long millis)
        {
            OffsetDateTime at = Instant.ofEpochMilli(millis).atOffset(ZoneOffset.UTC);
            if (at.getYear() < 0 || at.getYear() > 9999)
                return Long.toString(millis);
            return String.format("\"%04d-%02d-%02d %02d:%02d:%02d.%03dZ\"", at.getYear(), at.getMonthValue(),
                                 at.getDayOfMonth(), at.getHour(), at.getMinute(), at.getSecond(),
                                 at.getNano() / 1_000_000);
        }

        private static String date(long stored)
        {
            // Stored from the middle of the range on, as an int that wrapped.
            long days = (int) stored;
            LocalDate date = LocalDate.ofEpochDay(days);
            if (date.getYear() < 0 || date.getYear() > 9999)
                return Long.toString(days);
            return String.format("\"%04d-%02d-%02d\"", date.getYear(), date.getMonthValue(), date.getDayOfMonth());
        }

        private static String time(long nanos)
        {
            if (nanos < 0 || nanos >= 86_400_000_000_000L)
                return Long.toString(nanos);
            long seconds = nanos / 1_000_000_000;
            return String.format("\"%02d:%02d:%02d.%09d\"", seconds / 3600, seconds / 60 % 60, seconds % 60,
                                 nanos % 1_000_000_000);
        }
    }

    /** An object being written. */
    private static final class Json
    {
        private final StringBuilder text = new StringBuilder("{");

        Json put(String key, String json)
        {
            return putQuoted(quote(key), json);
        }

        Json putQuoted(String key, String json)
        {
            if (text.length() > 1)
                text.append(',');
            text.append(key).append(':').append(json);
            return this;
        }

        String end()
        {
            return text.append('}').toString();
        }

        static String array(List<String> values)
        {
            return '[' + String.join(",", values) + ']';
        }

        static String quote(String value)
        {
            StringBuilder quoted = new StringBuilder(value.length() + 2).append('"');
            for (int i = 0; i < value.length(); i++)
            {
                char c = value.charAt(i);
                switch (c)
                {
                    case '"': quoted.append("\\\""); break;
                    case '\\': quoted.append("\\\\"); break;
                    case '\b': quoted.append("\\b"); break;
                    case '\t': quoted.append("\\t"); break;
                    case '\n': quoted.append("\\n"); break;
                    case '\f': quoted.append("\\f"); break;
                    case '\r': quoted.append("\\r"); break;
                    default:
                        if (c < ' ')
                            quoted.append(String.format("\\u%04x", (int) c));
                        else
                            quoted.append(c);
                }
            }
            return quoted.append('"').toString();
        }
    }

    /** Makes the tables of a schema file, as `cdc log schema` writes it, known to Cassandra. */
    private static void loadSchema(JsonNode file) throws Exception
    {
        Map<String, List<JsonNode>> rows = new LinkedHashMap<>();
        for (JsonNode row : file.get("rows"))
            // Those are built in, and loaded.
            if (!Set.of("system", "system_schema").contains(text(row, "keyspace")))
                rows.computeIfAbsent(text(row, "keyspace"), name -> new ArrayList<>()).add(row);
        // Public in 4.0 only.
        Method load = Schema.class.getDeclaredMethod("load", KeyspaceMetadata.class);
        load.setAccessible(true);
        for (Map.Entry<String, List<JsonNode>> keyspace : rows.entrySet())
            load.invoke(Schema.instance, KeyspaceMetadata.create(keyspace.getKey(), KeyspaceParams.simple(1),
                                                                 tables(keyspace.getKey(), keyspace.getValue())));
    }

    private static Tables tables(String keyspace, List<JsonNode> rows)
    {
        Types.RawBuilder types = Types.rawBuilder(keyspace);
        Map<String, TableMetadata.Builder> tables = new LinkedHashMap<>();
        for (JsonNode row : rows)
        {
            JsonNode is = row.get("is");
            JsonNode table = is.has("view") ? is.get("view") : is.get("table");
            if (table != null)
                tables.put(text(row, "name"), TableMetadata.builder(keyspace, text(row, "name"),
                                                                    TableId.fromString(text(table, "id"))));
            if (is.has("type"))
                types.add(text(row, "name"), fields(is.get("type"), 0), fields(is.get("type"), 1));
        }
        // Keys in their order: the builder takes columns as they come.
        List<JsonNode> columns = new ArrayList<>(rows);
        columns.removeIf(row -> !row.get("is").has("column") && !row.get("is").has("dropped_column"));
        columns.sort(Comparator.comparingInt(row -> row.get("is").path("column").path("position").asInt(0)));
        Types known = types.build();
        for (JsonNode row : columns)
            addColumn(tables.get(text(row, "name")), keyspace, row, known);
        return Tables.of(tables.values().stream().map(TableMetadata.Builder::build).collect(Collectors.toList()));
    }

    private static void addColumn(TableMetadata.Builder table, String keyspace, JsonNode row, Types types)
    {
        String name = text(row, "column");
        JsonNode dropped = row.get("is").get("dropped_column");
        if (dropped != null)
        {
            AbstractType<?> type = CQLTypeParser.parse(keyspace, text(dropped, "type"), types);
            table.recordColumnDrop(text(dropped, "kind").equals("static")
                                   ? ColumnMetadata.staticColumn(keyspace, text(row, "name"), name, type)
                                   : ColumnMetadata.regularColumn(keyspace, text(row, "name"), name, type),
                                   dropped.get("dropped_us").asLong());
            return;
        }
        JsonNode column = row.get("is").get("column");
        AbstractType<?> type = CQLTypeParser.parse(keyspace, text(column, "type"), types);
        // Given as a string it would lose its capitals.
        ColumnIdentifier identifier = ColumnIdentifier.getInterned(name, true);
        switch (text(column, "kind"))
        {
            case "partition_key": table.addPartitionKeyColumn(identifier, type); break;
            case "clustering":
                table.addClusteringColumn(identifier, column.get("reversed").asBoolean() ? ReversedType.getInstance(type) : type);
                break;
            case "static": table.addStaticColumn(identifier, type); break;
            default: table.addRegularColumn(identifier, type);
        }
        if (type instanceof CounterColumnType)
            table.isCounter(true);
    }

    private static List<String> fields(JsonNode type, int part)
    {
        List<String> parts = new ArrayList<>();
        type.get("fields").forEach(field -> parts.add(field.get(part).asText()));
        return parts;
    }

    private static String text(JsonNode node, String key)
    {
        return node.get(key).asText();
    }
}

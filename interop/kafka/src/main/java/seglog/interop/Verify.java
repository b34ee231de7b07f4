package seglog.interop;

import java.io.File;
import java.io.IOException;
import java.nio.file.Files;
import java.util.ArrayList;
import java.util.List;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.record.FileLogInputStream.FileChannelRecordBatch;
import org.apache.kafka.common.record.FileRecords;
import org.apache.kafka.common.record.Record;
import org.apache.kafka.common.utils.Time;
import org.apache.kafka.server.util.KafkaScheduler;
import org.apache.kafka.storage.internals.log.AbstractIndex;
import org.apache.kafka.storage.internals.log.LogDirFailureChannel;
import org.apache.kafka.storage.internals.log.LogSegment;
import org.apache.kafka.storage.internals.log.OffsetIndex;
import org.apache.kafka.storage.internals.log.OffsetPosition;
import org.apache.kafka.storage.internals.log.ProducerStateManager;
import org.apache.kafka.storage.internals.log.ProducerStateManagerConfig;
import org.apache.kafka.storage.internals.log.TimeIndex;
import org.apache.kafka.storage.internals.log.TimestampOffset;
import org.apache.kafka.storage.internals.log.UnifiedLog;
import com.fasterxml.jackson.databind.JsonNode;

/**
 * Checks a directory without changing it: every batch and record of every segment, the sanity check of both indexes, each
 * of their entries against the batch it points to, and both against what LogSegment.recover builds from a copy of the log.
 */
final class Verify {
    /** What Kafka itself would trip over, or be led astray by. */
    final List<String> problems = new ArrayList<>();

    /** Where an index is not the one a rebuild gives; an index that was continued after a reopening may differ and be right. */
    final List<String> rebuildDiffs = new ArrayList<>();

    long batches;
    long records;
    long nextOffset;

    static Verify dir(File dir, JsonNode opts) throws IOException {
        Verify v = new Verify();
        File[] logs = Segments.logs(dir);
        for (File log : logs) {
            v.segment(log, log == logs[logs.length - 1], opts);
        }
        return v;
    }

    private void segment(File log, boolean last, JsonNode opts) throws IOException {
        long base = Segments.base(log);
        if (base < nextOffset) {
            problem(log, "begins at %d, the segment before it ends at %d", base, nextOffset);
        }
        List<Entry> entries = batches(log, base);
        File index = Segments.sibling(log, ".index");
        File timeIndex = Segments.sibling(log, ".timeindex");
        // seglog leaves them out where it closes a log whose last segment is tiny; a broker builds them.
        if (log.length() <= (last ? 4096 : 0) && !index.exists() && !timeIndex.exists()) {
            return;
        }
        if (!index.exists() || !timeIndex.exists()) {
            problem(log, "has no .index or no .timeindex");
            return;
        }
        OffsetIndex offsets = new OffsetIndex(index, base, -1, false);
        TimeIndex times = new TimeIndex(timeIndex, base, -1, false);
        try {
            sane(offsets);
            sane(times);
            offsetEntries(index, offsets, entries);
            timeEntries(timeIndex, times, entries);
            rebuild(log, base, opts, offsets, times);
        } finally {
            offsets.closeHandler();
            times.closeHandler();
        }
    }

    /** One batch as the indexes see it. */
    private record Entry(int position, long last, long maxTime) {}

    private List<Entry> batches(File log, long base) throws IOException {
        List<Entry> entries = new ArrayList<>();
        long end = 0;
        try (FileRecords file = FileRecords.open(log, false)) {
            for (FileChannelRecordBatch b : file.batches()) {
                b.ensureValid();
                if (b.baseOffset() < Math.max(base, nextOffset)) {
                    problem(log, "batch at %d begins at offset %d, expected at least %d", b.position(), b.baseOffset(), Math.max(base, nextOffset));
                }
                int count = 0;
                for (Record r : b) {
                    r.ensureValid();
                    count++;
                }
                if (count != b.countOrNull()) {
                    problem(log, "batch at %d holds %d records, its header says %d", b.position(), count, b.countOrNull());
                }
                entries.add(new Entry(b.position(), b.lastOffset(), b.maxTimestamp()));
                batches++;
                records += count;
                nextOffset = b.nextOffset();
                end = b.position() + b.sizeInBytes();
            }
        } catch (RuntimeException e) {
            problem(log, "%s", e);
        }
        if (end != log.length()) {
            problem(log, "has %d bytes behind its last whole batch", log.length() - end);
        }
        return entries;
    }

    private void sane(AbstractIndex index) {
        try {
            index.sanityCheck();
        } catch (RuntimeException e) {
            problem(index.file(), "%s", e);
        }
    }

    private void offsetEntries(File file, OffsetIndex index, List<Entry> batches) {
        int at = 0;
        for (int i = 0; i < index.entries(); i++) {
            OffsetPosition e = index.entry(i);
            while (at < batches.size() && batches.get(at).position < e.position()) {
                at++;
            }
            if (at == batches.size() || batches.get(at).position != e.position() || batches.get(at).last != e.offset()) {
                problem(file, "entry %d (%d at %d) is no batch of the log", i, e.offset(), e.position());
                return;
            }
        }
    }

    private void timeEntries(File file, TimeIndex index, List<Entry> batches) {
        long max = -1;
        int at = 0;
        long previous = -1;
        for (int i = 0; i < index.entries(); i++) {
            TimestampOffset e = index.entry(i);
            while (at < batches.size() && batches.get(at).last < e.offset()) {
                max = Math.max(max, batches.get(at++).maxTime);
            }
            if (at == batches.size() || batches.get(at).last != e.offset() || batches.get(at).maxTime != e.timestamp() || max >= e.timestamp()) {
                problem(file, "entry %d (%d at %d) is not the first batch with that maximum", i, e.timestamp(), e.offset());
                return;
            }
            if (e.timestamp() <= previous) {
                problem(file, "entry %d (%d) does not grow", i, e.timestamp());
            }
            previous = e.timestamp();
        }
        for (Entry b : batches) {
            max = Math.max(max, b.maxTime);
        }
        if (previous != max) {
            problem(file, "ends with time %d, the greatest in the log is %d", previous, max);
        }
    }

    private void rebuild(File log, long base, JsonNode opts, OffsetIndex offsets, TimeIndex times) throws IOException {
        File dir = Files.createTempDirectory("interop-0").toFile();
        KafkaScheduler scheduler = new KafkaScheduler(1, true);
        try {
            scheduler.startup();
            Files.copy(log.toPath(), new File(dir, log.getName()).toPath());
            TopicPartition tp = new TopicPartition("interop", 0);
            try (LogSegment segment = LogSegment.open(dir, base, KafkaLog.config(opts), Time.SYSTEM, 0, false)) {
                segment.recover(
                        new ProducerStateManager(tp, dir, 900_000, new ProducerStateManagerConfig(Integer.MAX_VALUE, false), Time.SYSTEM),
                        UnifiedLog.createLeaderEpochCache(dir, tp, new LogDirFailureChannel(1), java.util.Optional.empty(), scheduler));
                diff(offsets, segment.offsetIndex(), offsets::entry, segment.offsetIndex()::entry);
                diff(times, segment.timeIndex(), times::entry, segment.timeIndex()::entry);
            } catch (RuntimeException e) {
                problem(log, "recovery ends with %s", e);
            }
        } finally {
            try {
                scheduler.shutdown();
            } catch (InterruptedException e) {
                Thread.currentThread().interrupt();
            }
            Segments.removeTree(dir);
        }
    }

    private void diff(AbstractIndex got, AbstractIndex want, java.util.function.IntFunction<Object> g, java.util.function.IntFunction<Object> w) {
        if (got.entries() != want.entries()) {
            rebuildDiffs.add(got.file() + ": " + got.entries() + " entries, a rebuild has " + want.entries());
        }
        for (int i = 0; i < Math.min(got.entries(), want.entries()); i++) {
            if (!g.apply(i).equals(w.apply(i))) {
                rebuildDiffs.add(got.file() + ": entry " + i + " is " + g.apply(i) + ", a rebuild has " + w.apply(i));
                return;
            }
        }
    }

    private void problem(File file, String format, Object... args) {
        problems.add(file + ": " + String.format(format, args));
    }
}

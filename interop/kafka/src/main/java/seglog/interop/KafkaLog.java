package seglog.interop;

import com.fasterxml.jackson.databind.JsonNode;
import java.io.Closeable;
import java.io.File;
import java.io.IOException;
import java.util.Map;
import java.util.Optional;
import java.util.Properties;
import org.apache.kafka.common.config.TopicConfig;
import org.apache.kafka.common.record.MemoryRecords;
import org.apache.kafka.common.utils.Time;
import org.apache.kafka.server.util.KafkaScheduler;
import org.apache.kafka.storage.internals.log.Cleaner;
import org.apache.kafka.storage.internals.log.LogAppendInfo;
import org.apache.kafka.storage.internals.log.LogConfig;
import org.apache.kafka.storage.internals.log.LogDirFailureChannel;
import org.apache.kafka.storage.internals.log.LogSegment;
import org.apache.kafka.storage.internals.log.LogToClean;
import org.apache.kafka.storage.internals.log.ProducerStateManagerConfig;
import org.apache.kafka.storage.internals.log.SkimpyOffsetMap;
import org.apache.kafka.storage.internals.log.UnifiedLog;
import org.apache.kafka.storage.internals.utils.Throttler;
import org.apache.kafka.storage.log.metrics.BrokerTopicStats;

/**
 * A directory opened by the code a broker opens a partition with. UnifiedLog decides when to roll, LogSegment and the
 * index classes write the files; nothing of the format is spelled out here.
 */
final class KafkaLog implements Closeable {
    private final KafkaScheduler scheduler = new KafkaScheduler(1, true, "interop-");
    private final UnifiedLog log;

    /**
     * @param clean whether the last shutdown counts as clean: if so Kafka takes the indexes as they are, if not it checks
     *     every batch and rebuilds them, as with and without .kafka_cleanshutdown
     */
    KafkaLog(File dir, JsonNode opts, boolean clean) throws IOException {
        scheduler.startup();
        log = UnifiedLog.create(
                dir,
                config(opts),
                opts.path("start").asLong(0),
                clean ? Long.MAX_VALUE : 0,
                scheduler,
                new BrokerTopicStats(),
                Time.SYSTEM,
                900_000,
                new ProducerStateManagerConfig(Integer.MAX_VALUE, false),
                Integer.MAX_VALUE,
                new LogDirFailureChannel(1),
                clean,
                Optional.empty());
    }

    static LogConfig config(JsonNode opts) {
        Properties p = new Properties();
        p.put(LogConfig.INTERNAL_SEGMENT_BYTES_CONFIG, opts.path("segmentBytes").asInt(128 << 20));
        p.put(TopicConfig.INDEX_INTERVAL_BYTES_CONFIG, opts.path("indexBytes").asInt(4096));
        p.put(TopicConfig.SEGMENT_INDEX_BYTES_CONFIG, opts.path("maxIndexSize").asInt(10 << 20));
        p.put(TopicConfig.SEGMENT_MS_CONFIG, opts.path("segmentMs").asLong(Long.MAX_VALUE));
        p.put(TopicConfig.RETENTION_MS_CONFIG, -1);
        p.put(TopicConfig.MAX_MESSAGE_BYTES_CONFIG, 64 << 20);
        p.put(TopicConfig.MESSAGE_TIMESTAMP_AFTER_MAX_MS_CONFIG, Long.MAX_VALUE);
        p.put(TopicConfig.CLEANUP_POLICY_CONFIG, opts.path("cleanupPolicy").asText("delete"));
        p.put(TopicConfig.DELETE_RETENTION_MS_CONFIG, opts.path("deleteRetentionMs").asLong(86_400_000));
        return new LogConfig(p);
    }

    /** One append per batch: at its own offset as a follower does, at the end of the log as a leader does. */
    void append(JsonNode batch) throws IOException {
        if (batch.path("roll").asBoolean()) {
            log.roll();
            return;
        }
        for (int i = 0; i < batch.path("repeat").asInt(1); i++) {
            appendOne(batch, Batches.build(batch, i * batch.path("step").asLong(0)));
        }
        log.updateHighWatermark(log.logEndOffset());
    }

    private void appendOne(JsonNode batch, MemoryRecords records) throws IOException {
        LogAppendInfo info;
        if (batch.has("offset")) {
            info = log.appendAsFollower(records, Integer.MAX_VALUE);
        } else {
            info = log.appendAsLeader(records, batch.path("epoch").asInt(0));
        }
        if (info.validBytes() != records.sizeInBytes()) {
            throw new IOException("Kafka stored " + info.validBytes() + " of " + records.sizeInBytes() + " bytes");
        }
    }

    /** Compacts all segments but the active one by Kafka's own log cleaner. */
    void compact() throws Exception {
        log.updateHighWatermark(log.logEndOffset());
        Cleaner cleaner = new Cleaner(
                0,
                new SkimpyOffsetMap(1 << 20),
                1 << 20,
                64 << 20,
                0.9,
                new Throttler(Double.MAX_VALUE, 1000, "throttle", "bytes", Time.SYSTEM),
                Time.SYSTEM,
                tp -> {});
        cleaner.clean(new LogToClean(log, log.logStartOffset(), log.activeSegment().baseOffset(), false));
        for (LogSegment s : log.logSegments()) {
            s.flush();
        }
    }

    Map<String, Object> offsets() {
        return Map.of(
                "start", log.logStartOffset(),
                "end", log.logEndOffset(),
                "segments", log.numberOfSegments());
    }

    UnifiedLog log() {
        return log;
    }

    /** As at a broker's controlled stop: final time index entries, indexes trimmed to their size. */
    @Override
    public void close() throws IOException {
        try {
            scheduler.shutdown(); // first: it flushes rolled segments, of the log that is about to be closed
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
        }
        log.flush(true);
        log.close();
    }
}

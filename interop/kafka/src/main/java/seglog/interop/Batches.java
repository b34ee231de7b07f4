package seglog.interop;

import com.fasterxml.jackson.databind.JsonNode;
import java.io.IOException;
import java.nio.ByteBuffer;
import org.apache.kafka.common.compress.Compression;
import org.apache.kafka.common.header.Header;
import org.apache.kafka.common.header.internals.RecordHeader;
import org.apache.kafka.common.record.CompressionType;
import org.apache.kafka.common.record.ControlRecordType;
import org.apache.kafka.common.record.DefaultRecordBatch;
import org.apache.kafka.common.record.EndTransactionMarker;
import org.apache.kafka.common.record.MemoryRecords;
import org.apache.kafka.common.record.MemoryRecordsBuilder;
import org.apache.kafka.common.record.RecordBatch;
import org.apache.kafka.common.record.TimestampType;
import org.apache.kafka.common.utils.ByteBufferOutputStream;

/**
 * Builds batches with Kafka's own encoder from their JSON description:
 *
 * <pre>
 * {"offset":O, "epoch":E, "codec":"none|gzip|snappy|lz4|zstd", "logAppendTime":T,
 *  "pid":P, "pepoch":E, "seq":S, "txn":true, "last":L,
 *  "records":[{"o":O, "t":MS, "k":BASE64, "v":BASE64, "h":[["key", BASE64], ..]}, ..]}
 * {"offset":O, "pid":P, "pepoch":E, "control":"COMMIT|ABORT", "t":MS}
 * {"offset":O, "last":L, "pid":P, "pepoch":E, "seq":S, "t":MS, "empty":true}
 * </pre>
 *
 * "repeat":N, "step":MS appends it N times, each time its records MS later.
 *
 * Everything but records is optional. A record's "o" leaves gaps inside the batch, "last" one at its end, as the log
 * cleaner does.
 */
final class Batches {
    private Batches() {}

    /** @param later milliseconds to add to the times of the records */
    static MemoryRecords build(JsonNode b, long later) throws IOException {
        if (b.has("control")) {
            return control(b);
        }
        if (b.path("empty").asBoolean()) {
            return empty(b);
        }
        return data(b, later);
    }

    private static MemoryRecords data(JsonNode b, long later) throws IOException {
        long base = b.path("offset").asLong(0);
        boolean appendTime = b.has("logAppendTime");
        MemoryRecordsBuilder builder = new MemoryRecordsBuilder(
                new ByteBufferOutputStream(1024),
                RecordBatch.MAGIC_VALUE_V2,
                compression(b.path("codec").asText("none")),
                appendTime ? TimestampType.LOG_APPEND_TIME : TimestampType.CREATE_TIME,
                base,
                appendTime ? b.get("logAppendTime").asLong() : RecordBatch.NO_TIMESTAMP,
                producerId(b),
                producerEpoch(b),
                sequence(b),
                b.path("txn").asBoolean(),
                false,
                b.path("epoch").asInt(0),
                Integer.MAX_VALUE);
        long next = base;
        for (JsonNode r : b.path("records")) {
            long offset = r.path("o").asLong(next);
            builder.appendWithOffset(offset, r.get("t").asLong() + later, bytes(r.get("k")), bytes(r.get("v")), headers(r.path("h")));
            next = offset + 1;
        }
        if (b.has("last")) {
            builder.overrideLastOffset(b.get("last").asLong());
        }
        return builder.build();
    }

    private static MemoryRecords control(JsonNode b) {
        EndTransactionMarker marker = new EndTransactionMarker(
                ControlRecordType.valueOf(b.get("control").asText()), b.path("coordinatorEpoch").asInt(0));
        return MemoryRecords.withEndTransactionMarker(
                b.path("offset").asLong(0), b.get("t").asLong(), b.path("epoch").asInt(0), producerId(b), producerEpoch(b), marker);
    }

    /** The husk the cleaner keeps of a producer's last batch when all of its records are gone. */
    private static MemoryRecords empty(JsonNode b) {
        ByteBuffer buffer = ByteBuffer.allocate(DefaultRecordBatch.RECORD_BATCH_OVERHEAD);
        DefaultRecordBatch.writeEmptyHeader(
                buffer,
                RecordBatch.MAGIC_VALUE_V2,
                producerId(b),
                producerEpoch(b),
                sequence(b),
                b.path("offset").asLong(0),
                b.get("last").asLong(),
                b.path("epoch").asInt(0),
                TimestampType.CREATE_TIME,
                b.get("t").asLong(),
                b.path("txn").asBoolean(),
                false);
        buffer.flip();
        return MemoryRecords.readableRecords(buffer);
    }

    private static long producerId(JsonNode b) {
        return b.path("pid").asLong(RecordBatch.NO_PRODUCER_ID);
    }

    private static short producerEpoch(JsonNode b) {
        return (short) b.path("pepoch").asInt(RecordBatch.NO_PRODUCER_EPOCH);
    }

    private static int sequence(JsonNode b) {
        return b.path("seq").asInt(RecordBatch.NO_SEQUENCE);
    }

    private static Compression compression(String codec) {
        return Compression.of(CompressionType.forName(codec)).build();
    }

    private static byte[] bytes(JsonNode n) throws IOException {
        return n == null || n.isNull() ? null : n.binaryValue();
    }

    private static Header[] headers(JsonNode hs) throws IOException {
        Header[] headers = new Header[hs.size()];
        for (int i = 0; i < headers.length; i++) {
            headers[i] = new RecordHeader(hs.get(i).get(0).asText(), bytes(hs.get(i).get(1)));
        }
        return headers;
    }
}

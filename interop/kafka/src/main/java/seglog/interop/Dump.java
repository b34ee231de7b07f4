package seglog.interop;

import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.File;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.util.function.Consumer;
import org.apache.kafka.common.header.Header;
import org.apache.kafka.common.record.FileLogInputStream.FileChannelRecordBatch;
import org.apache.kafka.common.record.FileRecords;
import org.apache.kafka.common.record.Record;
import org.apache.kafka.common.utils.Utils;

/** Every batch and record of a directory as Kafka's record classes read them, one JSON object per batch. */
final class Dump {
    private Dump() {}

    static void dir(File dir, Consumer<ObjectNode> out) throws IOException {
        for (File log : Segments.logs(dir)) {
            try (FileRecords records = FileRecords.open(log, false)) {
                for (FileChannelRecordBatch batch : records.batches()) {
                    ObjectNode node = batch(batch);
                    node.put("file", log.getName());
                    out.accept(node);
                }
            }
        }
    }

    private static ObjectNode batch(FileChannelRecordBatch b) {
        ObjectNode n = Main.JSON.createObjectNode();
        n.put("pos", b.position());
        n.put("size", b.sizeInBytes());
        n.put("base", b.baseOffset());
        n.put("last", b.lastOffset());
        n.put("epoch", b.partitionLeaderEpoch());
        n.put("valid", b.isValid());
        n.put("codec", b.compressionType().name);
        n.put("timeType", b.timestampType().name);
        n.put("maxTime", b.maxTimestamp());
        n.put("pid", b.producerId());
        n.put("pepoch", b.producerEpoch());
        n.put("seq", b.baseSequence());
        n.put("count", b.countOrNull());
        n.put("txn", b.isTransactional());
        n.put("control", b.isControlBatch());
        b.deleteHorizonMs().ifPresent(ms -> n.put("deleteHorizon", ms));
        ArrayNode records = n.putArray("records");
        for (Record r : b) {
            records.add(record(r));
        }
        return n;
    }

    private static ObjectNode record(Record r) {
        ObjectNode n = Main.JSON.createObjectNode();
        n.put("o", r.offset());
        n.put("t", r.timestamp());
        n.put("k", bytes(r.key()));
        n.put("v", bytes(r.value()));
        if (r.headers().length > 0) {
            ArrayNode hs = n.putArray("h");
            for (Header h : r.headers()) {
                hs.addArray().add(h.key()).add(h.value());
            }
        }
        return n;
    }

    private static byte[] bytes(ByteBuffer b) {
        return b == null ? null : Utils.toArray(b);
    }
}

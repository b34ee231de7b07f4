package seglog.interop;

import com.fasterxml.jackson.core.StreamReadConstraints;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.BufferedReader;
import java.io.File;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.util.Iterator;
import java.util.Optional;
import org.apache.kafka.common.record.RecordBatch;
import org.apache.kafka.common.utils.Utils;
import org.apache.kafka.server.storage.log.FetchIsolation;

/**
 * Kafka's storage classes at the command line.
 *
 * <pre>
 * write DIR [OPTS]     append the batches described on stdin, one JSON object a line; creates or continues DIR
 * dump DIR             every batch and record, one JSON object a line
 * verify DIR [OPTS]    check everything, change nothing; exit status 1 if something is wrong
 * recover DIR [OPTS]   open as a broker does after an unclean stop, close
 * compact DIR [OPTS]   run the log cleaner over all segments but the last
 * dumplog DIR          kafka-dump-log over all files
 * produce ADDRESS TOPIC   idempotent and transactional records to a running broker, some of them aborted
 * serve                requests on stdin, answers on stdout, one JSON object a line each
 * </pre>
 *
 * OPTS is a JSON object with segmentBytes, indexBytes, maxIndexSize, segmentMs, start. DIR is named as Kafka names
 * a partition, TOPIC-0, for all that open it as a log. The description of a batch is in Batches.
 */
public final class Main {
    static final ObjectMapper JSON = new ObjectMapper();

    static {
        JSON.getFactory().setStreamReadConstraints(
                StreamReadConstraints.builder().maxStringLength(1 << 28).build());
    }

    private Main() {}

    public static void main(String[] args) throws Exception {
        PrintStream out = System.out;
        DumpLogTool.install();
        if (args.length == 1 && args[0].equals("serve")) {
            serve(out);
            return;
        }
        if (args.length < 2) {
            System.err.println("usage: write|dump|verify|recover|compact|dumplog DIR [OPTS] or serve");
            System.exit(2);
        }
        if (args[0].equals("produce")) {
            Produce.all(args[1], args[2]);
            return;
        }
        ObjectNode request = JSON.createObjectNode();
        request.put("cmd", args[0]).put("dir", args[1]);
        request.set("opts", args.length > 2 ? JSON.readTree(args[2]) : JSON.createObjectNode());
        if (args[0].equals("write")) {
            ArrayNode batches = request.putArray("batches");
            for (String line; (line = STDIN.readLine()) != null; ) {
                batches.add(JSON.readTree(line));
            }
        }
        if (args[0].equals("dump")) {
            Dump.dir(new File(args[1]), out::println);
            return;
        }
        ObjectNode answer = answer(request);
        if (args[0].equals("dumplog")) {
            out.print(answer.path("out").asText());
            System.err.print(answer.path("err").asText());
            return;
        }
        out.println(answer.toPrettyString());
        if (!answer.path("problems").isEmpty()) {
            System.exit(1);
        }
    }

    private static final BufferedReader STDIN = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));

    private static void serve(PrintStream out) throws IOException {
        for (String line; (line = STDIN.readLine()) != null; ) {
            ObjectNode answer;
            try {
                answer = answer(JSON.readTree(line));
            } catch (Exception e) {
                e.printStackTrace();
                answer = JSON.createObjectNode().put("error", e.toString());
            }
            out.println(JSON.writeValueAsString(answer));
            out.flush();
        }
    }

    private static ObjectNode answer(JsonNode request) throws Exception {
        File dir = new File(request.get("dir").asText()).getAbsoluteFile();
        JsonNode opts = request.path("opts");
        ObjectNode answer = JSON.createObjectNode();
        switch (request.get("cmd").asText()) {
            case "write" -> {
                try (KafkaLog log = new KafkaLog(dir, opts, true)) {
                    for (JsonNode b : request.path("batches")) {
                        log.append(b);
                    }
                    if (request.has("copyTo")) {
                        // As a killed broker leaves them: indexes not trimmed, the last times not in them.
                        Segments.copyFiles(dir, new File(request.get("copyTo").asText()));
                    }
                    answer.setAll(JSON.<ObjectNode>valueToTree(log.offsets()));
                }
            }
            case "recover" -> {
                try (KafkaLog log = new KafkaLog(dir, opts, false)) {
                    answer.setAll(JSON.<ObjectNode>valueToTree(log.offsets()));
                }
            }
            case "compact" -> {
                try (KafkaLog log = new KafkaLog(dir, ((ObjectNode) opts).put("cleanupPolicy", "compact"), true)) {
                    log.compact();
                    answer.setAll(JSON.<ObjectNode>valueToTree(log.offsets()));
                }
            }
            case "encode" -> answer.put("batch", Utils.toArray(Batches.build(request.get("batch"), 0).buffer()));
            case "dump" -> Dump.dir(dir, answer.withArray("batches")::add);
            case "lookup" -> lookup(dir, opts, request, answer);
            case "verify" -> {
                Verify v = Verify.dir(dir, opts);
                answer.put("batches", v.batches).put("records", v.records).put("end", v.nextOffset);
                v.problems.forEach(answer.putArray("problems")::add);
                v.rebuildDiffs.forEach(answer.putArray("rebuildDiffs")::add);
            }
            case "dumplog" -> {
                DumpLogTool.Output o = DumpLogTool.run(dir);
                answer.put("out", o.out()).put("err", o.err());
            }
            default -> throw new IllegalArgumentException("unknown command " + request.get("cmd"));
        }
        return answer;
    }

    /** The batch a fetch at each offset begins with, and the offset each time is answered with (-1: none). */
    private static void lookup(File dir, JsonNode opts, JsonNode request, ObjectNode answer) throws Exception {
        try (KafkaLog log = new KafkaLog(dir, opts, true)) {
            ArrayNode bases = answer.putArray("bases");
            for (JsonNode offset : request.path("offsets")) {
                Iterator<? extends RecordBatch> it =
                        log.log().read(offset.asLong(), 1, FetchIsolation.LOG_END, true).records.batches().iterator();
                bases.add(it.hasNext() ? it.next().baseOffset() : -1);
            }
            ArrayNode offsets = answer.putArray("offsets");
            for (JsonNode time : request.path("times")) {
                offsets.add(log.log().fetchOffsetByTimestamp(time.asLong(), Optional.empty())
                        .timestampAndOffsetOpt().map(found -> found.offset).orElse(-1L));
            }
        }
    }
}

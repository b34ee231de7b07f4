package seglog.interop;

import java.util.Map;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerConfig;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.serialization.StringSerializer;

/** What the console producer cannot do: transactions, of which one is aborted and its records stay in the log. */
final class Produce {
    private static final int RECORDS = 10;

    private Produce() {}

    static void all(String address, String topic) {
        Map<String, Object> config = Map.of(
                ProducerConfig.BOOTSTRAP_SERVERS_CONFIG, address,
                ProducerConfig.TRANSACTIONAL_ID_CONFIG, "interop",
                ProducerConfig.MAX_BLOCK_MS_CONFIG, 30_000,
                ProducerConfig.COMPRESSION_TYPE_CONFIG, "lz4");
        try (KafkaProducer<String, String> producer =
                new KafkaProducer<>(config, new StringSerializer(), new StringSerializer())) {
            producer.initTransactions();
            transaction(producer, topic, "first", true);
            transaction(producer, topic, "second", false);
            transaction(producer, topic, "third", true);
        }
    }

    private static void transaction(KafkaProducer<String, String> producer, String topic, String name, boolean commit) {
        producer.beginTransaction();
        for (int i = 0; i < RECORDS; i++) {
            producer.send(new ProducerRecord<>(topic, 0, name + "-" + i, commit ? "committed" : "aborted"));
        }
        producer.flush();
        if (commit) {
            producer.commitTransaction();
        } else {
            producer.abortTransaction();
        }
    }
}

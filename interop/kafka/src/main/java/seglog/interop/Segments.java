package seglog.interop;

import java.io.File;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.Comparator;
import java.util.stream.Stream;

/** The segment files of a directory by name. */
final class Segments {
    private Segments() {}

    static File[] logs(File dir) {
        File[] logs = dir.listFiles((d, name) -> name.matches("\\d{20}\\.log"));
        if (logs == null) {
            throw new IllegalArgumentException(dir + " is not a directory");
        }
        Arrays.sort(logs);
        return logs;
    }

    static long base(File log) {
        return Long.parseLong(log.getName().substring(0, 20));
    }

    static File sibling(File log, String suffix) {
        return new File(log.getParentFile(), log.getName().substring(0, 20) + suffix);
    }

    static void copyFiles(File from, File to) throws IOException {
        Files.createDirectories(to.toPath());
        try (Stream<Path> files = Files.list(from.toPath())) {
            for (Path p : (Iterable<Path>) files::iterator) {
                Files.copy(p, to.toPath().resolve(p.getFileName()));
            }
        }
    }

    static void removeTree(File dir) throws IOException {
        try (Stream<Path> files = Files.walk(dir.toPath())) {
            for (Path p : (Iterable<Path>) files.sorted(Comparator.reverseOrder())::iterator) {
                Files.delete(p);
            }
        }
    }
}

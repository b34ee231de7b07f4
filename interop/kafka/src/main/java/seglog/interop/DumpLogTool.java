package seglog.interop;

import java.io.ByteArrayOutputStream;
import java.io.File;
import java.io.OutputStream;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;

/** kafka-dump-log in this process, its two outputs caught apart: the tool exits with 0 whatever it finds. */
final class DumpLogTool {
    /** Scala keeps the System.out it first saw, so one stream stays installed and where it leads to changes. */
    private static final class Redirect extends OutputStream {
        private volatile OutputStream to = OutputStream.nullOutputStream();

        @Override
        public void write(int b) throws java.io.IOException {
            to.write(b);
        }

        @Override
        public void write(byte[] b, int off, int len) throws java.io.IOException {
            to.write(b, off, len);
        }
    }

    private static final Redirect OUT = new Redirect();
    private static final Redirect ERR = new Redirect();

    private DumpLogTool() {}

    record Output(String out, String err) {}

    /** Has to run before anything else touches Scala's Console. */
    static void install() {
        OUT.to = System.err;
        ERR.to = System.err;
        System.setOut(new PrintStream(OUT, true, StandardCharsets.UTF_8));
        System.setErr(new PrintStream(ERR, true, StandardCharsets.UTF_8));
    }

    static Output run(File dir) {
        List<String> files = new ArrayList<>();
        for (File log : Segments.logs(dir)) {
            for (String suffix : new String[] {".log", ".index", ".timeindex"}) {
                File f = Segments.sibling(log, suffix);
                if (f.exists()) {
                    files.add(f.getPath());
                }
            }
        }
        OutputStream out = OUT.to;
        OutputStream err = ERR.to;
        ByteArrayOutputStream caughtOut = new ByteArrayOutputStream();
        ByteArrayOutputStream caughtErr = new ByteArrayOutputStream();
        OUT.to = caughtOut;
        ERR.to = caughtErr;
        try {
            kafka.tools.DumpLogSegments.main(new String[] {
                "--deep-iteration", "--max-message-size", Integer.toString(64 << 20), "--files", String.join(",", files)
            });
        } finally {
            OUT.to = out;
            ERR.to = err;
        }
        return new Output(caughtOut.toString(StandardCharsets.UTF_8), caughtErr.toString(StandardCharsets.UTF_8));
    }
}

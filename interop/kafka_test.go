package interop

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// jvm is the process that runs Kafka's storage classes for all tests. Requests and answers are a line each.
var jvm struct {
	sync.Mutex
	once   sync.Once
	skip   string // the reason, if there is no JVM
	in     io.WriteCloser
	out    *bufio.Reader
	cmd    *exec.Cmd
	broken error
}

func TestMain(m *testing.M) {
	status := m.Run()
	if jvm.cmd != nil {
		jvm.in.Close()
		if err := jvm.cmd.Wait(); err != nil && status == 0 {
			fmt.Fprintln(os.Stderr, "interop: the JVM ended with", err)
			status = 1
		}
	}
	os.Exit(status)
}

// startJVM starts the JVM. If Java, Maven or Kafka's jars are not available, it leaves the reason in jvm.skip. The script
// need.sh builds and fetches what is needed.
func startJVM() {
	build := exec.Command("bash", "-c", ". ./need.sh; need_tools java javac mvn; need_jars", "interop")
	if out, err := build.CombinedOutput(); err != nil {
		jvm.skip = strings.TrimSpace(string(out))
		if jvm.skip == "" {
			jvm.skip = err.Error()
		}
		return
	}
	cmd := exec.Command("java", "-Xmx1g", "-XX:+UseSerialGC", "-Dfile.encoding=UTF-8", "-cp", "kafka/target/interop.jar:kafka/target/lib/*",
		"seglog.interop.Main", "serve")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		jvm.broken = err
		return
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		jvm.broken = err
		return
	}
	if err := cmd.Start(); err != nil {
		jvm.broken = err
		return
	}
	jvm.cmd, jvm.in, jvm.out = cmd, in, bufio.NewReaderSize(out, 1<<20)
}

// needKafka skips the test if Kafka's code is not available.
func needKafka(t testing.TB) {
	t.Helper()
	jvm.once.Do(startJVM)
	if jvm.skip != "" {
		t.Skip(jvm.skip)
	}
	require.NoError(t, jvm.broken)
}

// kafkaOpts holds the settings of a log under Kafka's names.
type kafkaOpts struct {
	SegmentBytes int64 `json:"segmentBytes,omitempty"`
	IndexBytes   int   `json:"indexBytes,omitempty"`
	MaxIndexSize int   `json:"maxIndexSize,omitempty"`
	SegmentMs    int64 `json:"segmentMs,omitempty"`
	Start        int64 `json:"start,omitempty"`
}

type request struct {
	Cmd     string    `json:"cmd"`
	Dir     string    `json:"dir"`
	Opts    kafkaOpts `json:"opts"`
	Batches []batch   `json:"batches,omitempty"`
	Batch   *batch    `json:"batch,omitempty"`
	CopyTo  string    `json:"copyTo,omitempty"`
	Offsets []int64   `json:"offsets,omitempty"`
	Times   []int64   `json:"times,omitempty"`
	_       struct{}  // named fields only
}

// ask sends a command to Kafka, which fills in the fields of answer that it sets.
func ask(t testing.TB, r request, answer any) {
	t.Helper()
	require.NoError(t, tryAsk(t, r, answer))
}

func tryAsk(t testing.TB, r request, answer any) error {
	t.Helper()
	needKafka(t)
	jvm.Lock()
	defer jvm.Unlock()
	line, err := json.Marshal(r)
	require.NoError(t, err)
	_, err = jvm.in.Write(append(line, '\n'))
	require.NoError(t, err, "the JVM accepts no more requests")
	line, err = jvm.out.ReadBytes('\n')
	require.NoError(t, err, "the JVM gave no answer to %s", r.Cmd)
	var failed struct{ Error string }
	require.NoError(t, json.Unmarshal(line, &failed), "%s", line)
	if failed.Error != "" {
		return errors.New("kafka " + r.Cmd + ": " + failed.Error)
	}
	if answer != nil {
		require.NoError(t, json.Unmarshal(line, answer))
	}
	return nil
}

// record and batch describe batches that Kafka's encoder is to build, and batches that its decoder has read.
type record struct {
	O *int64   `json:"o,omitempty"` // nil: the next one
	T int64    `json:"t"`
	K []byte   `json:"k"`
	V []byte   `json:"v"`
	H []header `json:"h,omitempty"`
}

type header struct {
	Key   string
	Value []byte
}

func (h header) MarshalJSON() ([]byte, error) { return json.Marshal([]any{h.Key, h.Value}) }

func (h *header) UnmarshalJSON(b []byte) error { return json.Unmarshal(b, &[]any{&h.Key, &h.Value}) }

type batch struct {
	Offset        *int64   `json:"offset,omitempty"` // nil: the end of the log, as a leader appends
	Epoch         int32    `json:"epoch,omitempty"`
	Codec         string   `json:"codec,omitempty"`
	LogAppendTime *int64   `json:"logAppendTime,omitempty"`
	PID           *int64   `json:"pid,omitempty"`
	PEpoch        *int16   `json:"pepoch,omitempty"`
	Seq           *int32   `json:"seq,omitempty"`
	Txn           bool     `json:"txn,omitempty"`
	Control       string   `json:"control,omitempty"`
	Empty         bool     `json:"empty,omitempty"`
	Last          *int64   `json:"last,omitempty"`
	T             *int64   `json:"t,omitempty"` // of a control or an empty batch
	Records       []record `json:"records,omitempty"`
	Repeat        int      `json:"repeat,omitempty"` // the number of times to append it,
	Step          int64    `json:"step,omitempty"`   // each time this many milliseconds later
}

// dumped is a batch as Kafka's decoder reads it.
type dumped struct {
	File            string
	Pos, Size       int64
	Base, Last      int64
	Epoch           int32
	Valid           bool
	Codec, TimeType string
	MaxTime         int64
	PID             int64
	Count           int
	Txn, Control    bool
	Records         []record
}

func kafkaDump(t testing.TB, dir string) []dumped {
	t.Helper()
	var answer struct{ Batches []dumped }
	ask(t, request{Cmd: "dump", Dir: dir}, &answer)
	return answer.Batches
}

// kafkaEncode returns a batch as Kafka's encoder writes it.
func kafkaEncode(t testing.TB, b batch) []byte {
	t.Helper()
	var answer struct{ Batch []byte }
	ask(t, request{Cmd: "encode", Dir: ".", Batch: &b}, &answer)
	return answer.Batch
}

// kafkaVerify checks that Kafka finds nothing wrong with a directory, and returns how the indexes differ from rebuilt ones.
func kafkaVerify(t testing.TB, dir string, opts kafkaOpts) (rebuildDiffs []string) {
	t.Helper()
	var answer struct {
		Problems, RebuildDiffs []string
	}
	ask(t, request{Cmd: "verify", Dir: dir, Opts: opts}, &answer)
	require.Empty(t, answer.Problems)
	return answer.RebuildDiffs
}

// kafkaDumpLog checks that kafka-dump-log reports no problem. The exit status is 0 in any case, so the text decides. Of a
// compacted log, the tool always reports that offsets are not consecutive, and that a batch without records lacks the greatest
// time that its header keeps.
func kafkaDumpLog(t testing.TB, dir string, gaps bool) {
	t.Helper()
	var answer struct{ Out, Err string }
	ask(t, request{Cmd: "dumplog", Dir: dir}, &answer)
	for _, line := range strings.Split(answer.Err, "\n") {
		if gaps && ofCompaction.MatchString(line) {
			continue
		}
		require.Empty(t, strings.TrimSpace(line), "kafka-dump-log complains")
	}
	require.NotContains(t, answer.Out, "isvalid: false")
	require.NotContains(t, answer.Out, "invalid bytes")
	require.Contains(t, answer.Out, "isvalid: true", "kafka-dump-log saw no batch")
}

var ofCompaction = regexp.MustCompile(`^(Non-consecutive offsets in .*|  \d+ is followed by \d+|` +
	`Found timestamp mismatch in :.*|  Index timestamp: \d+, log timestamp: -1)$`)

// topicDir returns a new directory with a name that Kafka accepts for a partition.
func topicDir(t testing.TB) string {
	dir := filepath.Join(t.TempDir(), "interop-0")
	require.NoError(t, os.Mkdir(dir, 0o755))
	return dir
}

// segmentFiles returns the contents of all .log, .index and .timeindex files of a directory.
func segmentFiles(t testing.TB, dir string) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	for _, suffix := range []string{".log", ".index", ".timeindex"} {
		names, err := filepath.Glob(filepath.Join(dir, strings.Repeat("[0-9]", 20)+suffix))
		require.NoError(t, err)
		for _, name := range names {
			b, err := os.ReadFile(name)
			require.NoError(t, err)
			files[filepath.Base(name)] = b
		}
	}
	return files
}

// copyDir copies the segment files, without the state of either program, into a new directory.
func copyDir(t testing.TB, from string) string {
	t.Helper()
	to := topicDir(t)
	for name, b := range segmentFiles(t, from) {
		require.NoError(t, os.WriteFile(filepath.Join(to, name), b, 0o644))
	}
	return to
}

func ptr[T any](v T) *T { return &v }

package main

import (
	"context"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"net"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kbin"
	"github.com/twmb/franz-go/pkg/kmsg"
	"golang.org/x/sync/semaphore"
)

// fill gives the fields of a request random values, and its arrays random elements.
func fill(v reflect.Value, r *rand.Rand) {
	switch v.Kind() {
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[kmsg.Tags]() {
			for range r.IntN(3) {
				v.Addr().Interface().(*kmsg.Tags).Set(100+r.Uint32N(9), make([]byte, r.IntN(5)))
			}
			return
		}
		for i := range v.NumField() {
			if name := v.Type().Field(i).Name; name != "Version" && !strings.HasPrefix(name, "ReplicaState") && name != "ClusterID" {
				fill(v.Field(i), r)
			}
		}
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			v.SetBytes(make([]byte, r.IntN(300)))
			return
		}
		v.Set(reflect.MakeSlice(v.Type(), r.IntN(4), 4))
		for i := range v.Len() {
			fill(v.Index(i), r)
		}
	case reflect.Pointer:
		if r.IntN(3) > 0 {
			v.Set(reflect.New(v.Type().Elem()))
			fill(v.Elem(), r)
		}
	case reflect.String:
		v.SetString(strings.Repeat("x", r.IntN(200)))
	case reflect.Bool:
		v.SetBool(r.IntN(2) == 0)
	case reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		v.SetInt(r.Int64N(100))
	}
}

var testLimits = Limits{}.withDefaults()

func bareFrame(b []byte) *frame {
	return &frame{bytes: b, buffer: new([]byte), inFlight: semaphore.NewWeighted(testLimits.InFlightBytes), limits: &testLimits}
}

// TestShapes checks that the server's shapes match kmsg's requests, byte for byte, in every supported version.
func TestShapes(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for key, api := range apis {
		for v := api.min; v <= api.max; v++ {
			for range 20 {
				req := kmsg.RequestForKey(key)
				fill(reflect.ValueOf(req).Elem(), r)
				req.SetVersion(v)
				b := kmsg.NewRequestFormatter().AppendRequest(nil, req, 1)[4:]
				rq, err := parseRequest(context.Background(), bareFrame(b))
				require.NoError(t, err, "%s version %d", kmsg.NameForKey(key), v)
				require.Equal(t, b, kmsg.NewRequestFormatter().AppendRequest(nil, rq.body, 1)[4:], "%s version %d", kmsg.NameForKey(key), v)
				// A request that is a byte shorter or longer must be refused before kmsg sees it.
				rest := kbin.Reader{Src: b}
				rest.Span(8)
				rest.NullableString()
				_, err = checkShape(rest.Src, key, v, req.IsFlexible())
				require.NoError(t, err)
				_, err = checkShape(append(rest.Src[:len(rest.Src):len(rest.Src)], 0), key, v, req.IsFlexible())
				require.Error(t, err)
				if n := len(rest.Src); n > 0 {
					_, err = checkShape(rest.Src[:n-1], key, v, req.IsFlexible())
					require.Error(t, err, "%s version %d", kmsg.NameForKey(key), v)
				}
			}
		}
	}
}

// allocated returns the number of bytes that f allocates, including garbage.
func allocated(f func()) int64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return int64(after.TotalAlloc - before.TotalAlloc)
}

// FuzzParseRequest checks that parsing any frame ends, and uses memory in proportion to the frame.
func FuzzParseRequest(f *testing.F) {
	r := rand.New(rand.NewPCG(3, 4))
	for key, api := range apis {
		req := kmsg.RequestForKey(key)
		fill(reflect.ValueOf(req).Elem(), r)
		req.SetVersion(api.max)
		f.Add(kmsg.NewRequestFormatter().AppendRequest(nil, req, 1)[4:])
	}
	for _, b := range hostileFrames(4 << 10) {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		began := time.Now()
		var rq *request
		var err error
		n := allocated(func() { rq, err = parseRequest(context.Background(), bareFrame(b)) })
		// The worst valid requests consist of structures of three bytes with one tag each, which kmsg keeps in a map per structure.
		if limit := int64(16<<10 + 256*len(b)); n > limit {
			t.Errorf("%d bytes allocated for a frame of %d", n, len(b))
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("took %v", took)
		}
		if err == nil && rq.body == nil {
			t.Error("neither a request nor an error")
		}
	})
}

// hostileFrames returns frames that claim to hold more elements than they do.
func hostileFrames(size int) map[string][]byte {
	header := func(key, version int16, flexible bool) []byte {
		b := kbin.AppendInt16(nil, key)
		b = kbin.AppendInt16(b, version)
		b = kbin.AppendInt32(b, 1)
		b = kbin.AppendNullableString(b, nil)
		if flexible {
			b = append(b, 0)
		}
		return b
	}
	padded := func(b []byte) []byte { return append(b, make([]byte, size-len(b))...) }
	fetch := header(kmsg.Fetch.Int16(), 4, false)
	fetch = append(fetch, make([]byte, 17)...)
	metadata := header(kmsg.Metadata.Int16(), 9, true)
	produce := header(kmsg.Produce.Int16(), 3, false)
	produce = append(produce, 0xff, 0xff, 0, 1, 0, 0, 0, 0)
	return map[string][]byte{
		"an array as long as the request": padded(kbin.AppendInt32(fetch, int32(size-1000))),
		"millions of small elements":      padded(kbin.AppendInt32(header(kmsg.Metadata.Int16(), 1, false), int32(size-100)/2)),
		"millions of empty topics":        padded(kbin.AppendInt32(produce, int32(size-100)/6)),
		"billions of tags":                kbin.AppendUvarint(header(kmsg.ApiVersions.Int16(), 3, false), 1<<32-1),
		"billions of tags in a body":      kbin.AppendUvarint(append(metadata, 1, 0, 0, 0), 1<<32-1),
		"millions of tags":                padded(kbin.AppendUvarint(append(metadata, 1, 0, 0, 0), uint32(size/3))),
		"a compact array of 4 Gi":         kbin.AppendUvarint(metadata, 1<<32-1),
	}
}

// TestHostileFrames checks that claimed lengths of arrays and counts of tags cost neither memory nor time.
func TestHostileFrames(t *testing.T) {
	for name, b := range hostileFrames(16 << 20) {
		t.Run(name, func(t *testing.T) {
			began := time.Now()
			var err error
			n := allocated(func() { _, err = parseRequest(context.Background(), bareFrame(b)) })
			require.Error(t, err)
			require.Less(t, n, int64(64<<10))
			require.Less(t, time.Since(began), time.Second)
		})
	}
}

// slowSource is a peer that sends only a part of the announced bytes.
type slowSource struct{ left int }

func (s *slowSource) SetReadDeadline(time.Time) error { return nil }

func (s *slowSource) Read(b []byte) (int, error) {
	if s.left == 0 {
		return 0, io.ErrUnexpectedEOF
	}
	n := min(len(b), s.left)
	s.left -= n
	clear(b[:n])
	return n, nil
}

// TestFrameTakesMemoryForArrivedBytesOnly checks that a frame takes memory only for bytes that arrive, and that the memory is
// released.
func TestFrameTakesMemoryForArrivedBytesOnly(t *testing.T) {
	const claimed = 90 << 20
	inFlight := semaphore.NewWeighted(claimed)
	for _, sent := range []int{0, 1, firstBytes, 1 << 20, 10 << 20} {
		var err error
		n := allocated(func() { _, err = readFrame(context.Background(), &slowSource{sent}, claimed, inFlight, &testLimits) })
		require.Error(t, err)
		require.LessOrEqual(t, n, int64(4*sent+2*firstBytes), "%d bytes sent", sent)
	}
	require.True(t, inFlight.TryAcquire(claimed), "all memory must be released")
	inFlight.Release(claimed)
	f, err := readFrame(context.Background(), &slowSource{10 << 20}, 10<<20, inFlight, &testLimits)
	require.NoError(t, err)
	require.Len(t, f.bytes, 10<<20)
	require.False(t, inFlight.TryAcquire(claimed))
	f.release()
	f.release()
	require.True(t, inFlight.TryAcquire(claimed))
}

// TestFramesShareMemory checks that a request waits until another releases its memory.
func TestFramesShareMemory(t *testing.T) {
	inFlight := semaphore.NewWeighted(8 << 20)
	first, err := readFrame(context.Background(), &slowSource{8 << 20}, 8<<20, inFlight, &testLimits)
	require.NoError(t, err)
	second := make(chan error)
	go func() {
		f, err := readFrame(context.Background(), &slowSource{8 << 20}, 8<<20, inFlight, &testLimits)
		if err == nil {
			f.release()
		}
		second <- err
	}()
	select {
	case err := <-second:
		t.Fatalf("the second request got its memory before the first released it: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	first.release()
	require.NoError(t, <-second)
}

// TestOnlyProduceIsLarge checks that requests without records have a lower size limit than those with records.
func TestOnlyProduceIsLarge(t *testing.T) {
	b := startBroker(t, Config{})
	frame := kbin.AppendInt32(nil, maxControlBytes+1)
	frame = kbin.AppendInt16(frame, kmsg.Metadata.Int16())
	frame = append(frame, make([]byte, firstBytes)...)
	require.True(t, dial(t, b.addr).endsConnection(frame))
}

// TestClaimsOfManyConnections checks that hundreds of clients that announce 99 MiB each, but send four bytes, cost little
// memory.
func TestClaimsOfManyConnections(t *testing.T) {
	b := startBroker(t, Config{})
	before := heapInUse()
	for range 300 {
		c, err := net.Dial("tcp", b.addr)
		require.NoError(t, err)
		defer c.Close()
		_, err = c.Write(binary.BigEndian.AppendUint32(nil, 99<<20))
		require.NoError(t, err)
	}
	eventually(t, func() bool { return b.connections() == 300 }, func() string { return "not all clients are connected" })
	time.Sleep(100 * time.Millisecond)
	require.Less(t, heapInUse()-before, int64(300*2*firstBytes), "at most two first buffers for each")
}

func heapInUse() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapInuse)
}

func (b *broker) connections() int {
	b.server.mu.Lock()
	defer b.server.mu.Unlock()
	return len(b.server.conns)
}

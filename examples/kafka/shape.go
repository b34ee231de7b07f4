package main

import (
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kbin"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// kmsg believes the array lengths and tag counts in a request: it makes an array before it has seen the first element,
// and counts tags down to the end when there are none. So a request is walked through first, by the shapes below, which
// costs no memory and ends where the bytes do. What passes holds every element that it claims, and not too many.

// field is a part of a request.
type field struct {
	kind     kind
	from, to int16   // the versions that have it
	size     int     // of a number, in bytes
	elements []field // of a list: the fields of a structure, or one value
}

type kind int

const (
	number    kind = iota
	text           // length as int16 or compact
	blob           // length as int32 or compact
	listOf         // of single values
	structsOf      // of structures, each followed by tags in a flexible version
)

const lastVersion = 1<<15 - 1

var (
	i8  = field{to: lastVersion, size: 1}
	i16 = field{to: lastVersion, size: 2}
	i32 = field{to: lastVersion, size: 4}
	i64 = field{to: lastVersion, size: 8}
	str = field{to: lastVersion, kind: text}
	raw = field{to: lastVersion, kind: blob}
)

func since(version int16, f field) field { f.from = version; return f }
func until(version int16, f field) field { f.to = version; return f }
func many(f field) field                 { return field{to: lastVersion, kind: listOf, elements: []field{f}} }
func structs(fs ...field) field          { return field{to: lastVersion, kind: structsOf, elements: fs} }

// shapes are the bodies of the requests in apis, in the versions that are offered.
var shapes = map[int16][]field{
	kmsg.ApiVersions.Int16(): {since(3, str), since(3, str)},
	kmsg.Metadata.Int16():    {structs(str), since(4, i8), since(8, i8), since(8, i8)},

	kmsg.InitProducerID.Int16(): {str, i32, since(3, i64), since(3, i16)},
	kmsg.Produce.Int16():        {str, i16, i32, structs(str, structs(i32, raw))},
	kmsg.Fetch.Int16(): {i32, i32, i32, i32, i8, since(7, i32), since(7, i32),
		structs(str, structs(i32, since(9, i32), i64, since(12, i32), since(5, i64), i32)),
		since(7, structs(str, many(i32))), since(11, str)},
	kmsg.ListOffsets.Int16(): {i32, since(2, i8), structs(str, structs(i32, since(4, i32), i64))},

	kmsg.FindCoordinator.Int16(): {str, since(1, i8)},
	kmsg.JoinGroup.Int16():       {str, i32, since(1, i32), str, since(5, str), str, structs(str, raw)},
	kmsg.SyncGroup.Int16():       {str, i32, str, since(3, str), structs(str, raw)},
	kmsg.Heartbeat.Int16():       {str, i32, str, since(3, str)},
	kmsg.LeaveGroup.Int16():      {str, until(2, str), since(3, structs(str, str))},
	kmsg.OffsetCommit.Int16(): {str, i32, str, since(7, str), until(4, i64),
		structs(str, structs(i32, i64, since(6, i32), str))},
	kmsg.OffsetFetch.Int16():    {str, structs(str, many(i32)), since(7, i8)},
	kmsg.OffsetDelete.Int16():   {str, structs(str, structs(i32))},
	kmsg.ListGroups.Int16():     {since(4, many(str))},
	kmsg.DescribeGroups.Int16(): {many(str), since(3, i8)},
	kmsg.DeleteGroups.Int16():   {many(str)},

	kmsg.CreateTopics.Int16():            {structs(str, i32, i16, structs(i32, many(i32)), structs(str, str)), i32, since(1, i8)},
	kmsg.DeleteTopics.Int16():            {many(str), i32},
	kmsg.CreatePartitions.Int16():        {structs(str, i32, structs(many(i32))), i32, i8},
	kmsg.DescribeConfigs.Int16():         {structs(i8, str, many(str)), since(1, i8), since(3, i8)},
	kmsg.IncrementalAlterConfigs.Int16(): {structs(i8, str, structs(str, i8, str)), i8},
	kmsg.DeleteRecords.Int16():           {structs(str, structs(i32, i64)), i32},
}

// walk goes through the rest of a request header and the body behind it.
type walk struct {
	src      []byte
	flexible bool
	elements int
	err      error
}

var errShort = errors.New("it ends early")

// checkShape says whether a request, from behind its client id on, holds what it claims to hold.
func checkShape(b []byte, key, version int16, flexible bool) (elements int, err error) {
	w := &walk{src: b, flexible: flexible}
	w.tags()
	w.fields(shapes[key], version)
	w.tags()
	if w.err == nil && len(w.src) > 0 {
		w.err = fmt.Errorf("%d bytes behind its end", len(w.src))
	}
	return w.elements, w.err
}

func (w *walk) fields(fs []field, version int16) {
	for i := range fs {
		if f := &fs[i]; w.err == nil && f.from <= version && version <= f.to {
			w.field(f, version)
		}
	}
}

func (w *walk) field(f *field, version int16) {
	switch f.kind {
	case number:
		w.skip(int64(f.size))
	case text:
		w.skip(w.length(2))
	case blob:
		w.skip(w.length(4))
	default:
		for n := w.length(4); n > 0 && w.element(); n-- {
			w.fields(f.elements, version)
			if f.kind == structsOf {
				w.tags()
			}
		}
	}
}

// tags are optional fields at the end of a structure: a number, and so many times a key, a length, and bytes.
func (w *walk) tags() {
	if !w.flexible {
		return
	}
	for n := w.uvarint(); n > 0 && w.element(); n-- {
		w.uvarint()
		w.skip(w.uvarint())
	}
}

// element counts one, and says whether to go on.
func (w *walk) element() bool {
	w.elements++
	if w.elements > maxElements {
		w.fail(fmt.Errorf("more than %d array elements", maxElements))
	}
	return w.err == nil
}

// length is that of a text, bytes or an array, -1 for null: compact, or in so many bytes.
func (w *walk) length(size int) int64 {
	if w.flexible {
		return w.uvarint() - 1
	}
	if len(w.src) < size {
		w.fail(errShort)
		return 0
	}
	r := kbin.Reader{Src: w.src}
	w.src = w.src[size:]
	if size == 2 {
		return int64(r.Int16())
	}
	return int64(r.Int32())
}

func (w *walk) uvarint() int64 {
	v, n := kbin.Uvarint(w.src)
	if n <= 0 {
		w.fail(errShort)
		return 0
	}
	w.src = w.src[n:]
	return int64(v)
}

func (w *walk) skip(n int64) {
	if n > int64(len(w.src)) {
		w.fail(errShort)
		return
	}
	w.src = w.src[max(n, 0):]
}

func (w *walk) fail(err error) {
	if w.err == nil {
		w.err = err
	}
	w.src = nil
}

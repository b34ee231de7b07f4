package seglog

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// A timestamp reaches to the year 292278994, and that of a producer that writes microseconds for milliseconds lies far beyond
// the year 9999, which package time refuses to write as JSON. The types with times in them write such a year with a sign, as
// ISO 8601 and JavaScript do: "+57840-01-31T18:00:00Z". In all other respects their JSON is that of package json.

// MarshalJSON writes the JSON that package json would write, except that times after the year 9999 get a sign:
// "+57840-01-31T18:00:00Z".
func (r Record) MarshalJSON() ([]byte, error) {
	type plain Record
	return json.Marshal(struct {
		plain
		Time jsonTime
	}{plain(r), jsonTime(r.Time)})
}

// UnmarshalJSON reads what MarshalJSON writes.
func (r *Record) UnmarshalJSON(b []byte) error {
	type plain Record
	return json.Unmarshal(b, &struct {
		*plain
		Time *jsonTime
	}{(*plain)(r), (*jsonTime)(&r.Time)})
}

// MarshalJSON is as that of Record.
func (s SegmentInfo) MarshalJSON() ([]byte, error) {
	type plain SegmentInfo
	return json.Marshal(struct {
		plain
		MaxTime jsonTime
	}{plain(s), jsonTime(s.MaxTime)})
}

// UnmarshalJSON reads what MarshalJSON writes.
func (s *SegmentInfo) UnmarshalJSON(b []byte) error {
	type plain SegmentInfo
	return json.Unmarshal(b, &struct {
		*plain
		MaxTime *jsonTime
	}{(*plain)(s), (*jsonTime)(&s.MaxTime)})
}

// MarshalJSON is as that of Record.
func (b BatchInfo) MarshalJSON() ([]byte, error) {
	type plain BatchInfo
	return json.Marshal(struct {
		plain
		BaseTime, MaxTime jsonTime
	}{plain(b), jsonTime(b.BaseTime), jsonTime(b.MaxTime)})
}

// UnmarshalJSON reads what MarshalJSON writes.
func (b *BatchInfo) UnmarshalJSON(text []byte) error {
	type plain BatchInfo
	return json.Unmarshal(text, &struct {
		*plain
		BaseTime, MaxTime *jsonTime
	}{(*plain)(b), (*jsonTime)(&b.BaseTime), (*jsonTime)(&b.MaxTime)})
}

// MarshalJSON is as that of Record.
func (s SegmentReport) MarshalJSON() ([]byte, error) {
	type plain SegmentReport
	return json.Marshal(struct {
		plain
		MinTime jsonTime `json:"minTime,omitzero"`
		MaxTime jsonTime `json:"maxTime,omitzero"`
	}{plain(s), jsonTime(s.MinTime), jsonTime(s.MaxTime)})
}

// UnmarshalJSON reads what MarshalJSON writes.
func (s *SegmentReport) UnmarshalJSON(b []byte) error {
	type plain SegmentReport
	return json.Unmarshal(b, &struct {
		*plain
		MinTime *jsonTime `json:"minTime"`
		MaxTime *jsonTime `json:"maxTime"`
	}{(*plain)(s), (*jsonTime)(&s.MinTime), (*jsonTime)(&s.MaxTime)})
}

// jsonTime is a time.Time with the JSON described above.
type jsonTime time.Time

// IsZero serves the option omitzero.
func (t jsonTime) IsZero() bool { return time.Time(t).IsZero() }

func (t jsonTime) MarshalJSON() ([]byte, error) {
	at := time.Time(t)
	if at.Year() <= 9999 {
		return at.MarshalJSON()
	}
	return []byte(at.Format(`"+2006-01-02T15:04:05.999999999Z07:00"`)), nil
}

func (t *jsonTime) UnmarshalJSON(b []byte) error {
	long, ok := strings.CutPrefix(string(b), `"+`)
	if !ok {
		return (*time.Time)(t).UnmarshalJSON(b)
	}
	year, rest, _ := strings.Cut(strings.TrimSuffix(long, `"`), "-")
	n, err := strconv.Atoi(year)
	if err != nil {
		return fmt.Errorf("%w: time %s: %w", ErrInvalid, b, err)
	}
	// Parse the date in a year that has the same days.
	at, err := time.Parse(time.RFC3339Nano, fmt.Sprintf("%04d-%s", 2000+n%400, rest))
	if err != nil {
		return fmt.Errorf("%w: time %s: %w", ErrInvalid, b, err)
	}
	*t = jsonTime(at.AddDate(n-at.Year(), 0, 0))
	return nil
}

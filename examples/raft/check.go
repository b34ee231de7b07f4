package main

import (
	"fmt"
	"net/http"
	"os"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/seglog/seglog"
)

// logModel is a log as one machine would keep it: an append gets the next offset, a read the end and the last value.
func logModel(begin view) porcupine.Model {
	return porcupine.Model{
		Init: func() any { return begin },
		Step: func(state, input, output any) (bool, any) {
			s, c, r := state.(view), input.(call), output.(reply)
			if !c.Append {
				return r.view == s, s
			}
			return r.Offset == s.End, view{s.End + 1, c.Value}
		},
		DescribeOperation: func(input, output any) string {
			c, r := input.(call), output.(reply)
			if c.Append {
				return fmt.Sprintf("append %s: %d", c.Value, r.Offset)
			}
			return fmt.Sprintf("read: %d, %s", r.End, r.Last)
		},
		DescribeState: func(state any) string { return fmt.Sprintf("%d, %s", state.(view).End, state.(view).Last) },
	}
}

// checkLinearizable looks for an order of the calls, each between its begin and its end, that gives every client the
// replies that it got. If there is none, picture gets an HTML page of the history.
func checkLinearizable(begin view, history []porcupine.Operation, picture string) error {
	model := logModel(begin)
	result, info := porcupine.CheckOperationsVerbose(model, history, 60*time.Second)
	if result == porcupine.Ok {
		return nil
	}
	f, err := os.Create(picture)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := porcupine.Visualize(model, info, f); err != nil {
		return err
	}
	return fmt.Errorf("the history of %d calls is not linearizable (%s); %s shows it", len(history), result, picture)
}

// checkLogs compares the logs of all servers with each other and with what was acknowledged: nothing is missing, doubled,
// moved or made up. It returns the state that a client sees.
func (cs *clients) checkLogs() (view, error) {
	end, err := cs.cluster.settle()
	if err != nil {
		return view{}, err
	}
	cs.mu.Lock()
	defer cs.mu.Unlock()
	var first []string
	for _, id := range cs.cluster.running() {
		values, err := cs.cluster.log(id)
		switch {
		case err != nil:
			return view{}, fmt.Errorf("log of %s: %w", id, err)
		case int64(len(values)) != end:
			return view{}, fmt.Errorf("log of %s: %d records, its end is %d", id, len(values), end)
		case first == nil:
			first = values
		}
		for i := range values {
			if values[i] != first[i] {
				return view{}, fmt.Errorf("log of %s: record %d is %q, elsewhere %q", id, i, values[i], first[i])
			}
		}
	}
	offsets := make(map[string]int64)
	for i, value := range first {
		if at, ok := offsets[value]; ok {
			return view{}, fmt.Errorf("%q is at %d and again at %d", value, at, i)
		}
		offsets[value] = int64(i)
		if _, ok := cs.acked[value]; !ok {
			return view{}, fmt.Errorf("%q at %d was never acknowledged", value, i)
		}
	}
	for value, offset := range cs.acked {
		if at, ok := offsets[value]; !ok || at != offset {
			return view{}, fmt.Errorf("%q was acknowledged at %d, and is at %d (%v)", value, offset, at, ok)
		}
	}
	for _, v := range cs.stale {
		if v.End > int64(len(first)) || v.End > 0 && first[v.End-1] != v.Last || v.End == 0 && v.Last != "" {
			return view{}, fmt.Errorf("a stale read got %+v, which the log never was", v)
		}
	}
	cs.stale = nil
	if len(first) == 0 {
		return view{}, nil
	}
	return view{int64(len(first)), first[len(first)-1]}, nil
}

// log is all values of a server's copy, as its batches say.
func (c *cluster) log(id string) (values []string, err error) {
	address, ok := c.address(id)
	if !ok {
		return nil, errNotRunning
	}
	resp, err := (&http.Client{Timeout: 30 * time.Second}).Get("http://" + address + "/log")
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	for rec, err := range seglog.Decode(resp.Body) {
		if err != nil {
			return nil, err
		}
		if rec.Offset != int64(len(values)) {
			return nil, fmt.Errorf("record %d follows %d", rec.Offset, len(values)-1)
		}
		values = append(values, string(rec.Value))
	}
	return values, nil
}

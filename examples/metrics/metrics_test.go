package main

import (
	"reflect"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/seglog/seglog"
)

// TestEveryField checks that each number in Stats is published exactly once: every field gets a unique value, which must be
// published.
func TestEveryField(t *testing.T) {
	l, err := seglog.Open(t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c := newCollector(l, "somewhere")
	var s seglog.Stats
	var names []string
	next := int64(1)
	var fill func(v reflect.Value, path string)
	fill = func(v reflect.Value, path string) {
		if v.Kind() == reflect.Struct {
			for i := range v.NumField() {
				fill(v.Field(i), path+"."+v.Type().Field(i).Name)
			}
			return
		}
		v.SetInt(next * 1e9) // whole seconds, in the fields that are durations
		names = append(names, path)
		next++
	}
	fill(reflect.ValueOf(&s).Elem(), "Stats")
	published := make(map[float64]int)
	for _, m := range c.metrics {
		v := m.value(&s)
		if strings.Contains(m.desc.String(), "seconds") {
			v *= 1e9
		}
		published[v]++
	}
	for i, name := range names {
		if n := published[float64(i+1)*1e9]; n != 1 {
			t.Errorf("%s is published %d times", name, n)
		}
	}
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(c)
	if _, err := registry.Gather(); err != nil {
		t.Error(err)
	}
}

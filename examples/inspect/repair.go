package main

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/seglog/seglog"
)

var repairCommand = &command{
	name: "repair", short: "a way back from damage; says what it would do",
	flags: "[-keep] [-apply] [-json] ",
	long: `Says what would make a damaged log whole again, and with -apply does it. The log must not be open. Every byte that is
taken out is kept beside it, in files named seglog.repair-<base offset>-<position>.

  -keep    keep all good batches: readers find the bad offsets left out. Without it the log ends where the first damage
           begins, as if nothing had been appended after
  -apply   do it
  -json    print the whole report

  inspect repair /var/lib/orders                 what would be lost if the log were cut
  inspect repair -keep /var/lib/orders           and what if not
  inspect repair -keep -apply /var/lib/orders`,
	run: (*tool).repair,
}

func (t *tool) repair(args []string) error {
	o := &seglog.RepairOptions{}
	t.flags.BoolVar(&o.Apply, "apply", false, "")
	t.flags.BoolVar(&o.KeepAfter, "keep", false, "")
	asJSON := t.flags.Bool("json", false, "")
	dir, err := t.directory(args)
	if err != nil {
		return err
	}
	r, err := seglog.Repair(dir, o)
	if errors.Is(err, seglog.ErrLocked) {
		return fmt.Errorf("a log is repaired while nobody writes it: %w", err)
	}
	if err != nil {
		return err
	}
	if *asJSON {
		return printJSON(t.out, r)
	}
	t.printRepair(r, o)
	return nil
}

func (t *tool) printRepair(r *seglog.RepairReport, o *seglog.RepairOptions) {
	if r.Sound() {
		fmt.Fprintf(t.out, "nothing to repair: %s records, offsets %s to %s\n", number(r.Records), number(r.Start), number(r.End))
		return
	}
	would := "would take out"
	if o.Apply {
		would = "took out"
	}
	if len(r.Removed) > 0 {
		fmt.Fprintln(t.out, would+":")
		list := table{head: []string{"  FILE", "POSITION", "BYTES", "OFFSETS", "GOOD BATCHES", "WHY"}, left: map[int]bool{0: true, 3: true, 5: true}}
		for _, m := range r.Removed {
			offsets := "-"
			if m.Offset >= 0 {
				offsets = fmt.Sprintf("from %d", m.Offset)
			}
			if m.Next >= 0 {
				offsets = fmt.Sprintf("%d to %d", m.Offset, m.Next)
			}
			list.add("  "+filepath.Base(m.Path), number(m.Pos), number(m.Bytes), offsets, number(m.Good), m.Reason)
		}
		list.print(t.out)
	}
	for _, c := range r.Changes {
		fmt.Fprintln(t.out, "noted in seglog.state:", c)
	}
	fmt.Fprintf(t.out, "afterwards: %s batches with %s records, %s, offsets %s to %s", number(r.Batches), number(r.Records), size(r.Bytes), number(r.Start), number(r.End))
	if r.Gaps {
		fmt.Fprint(t.out, ", some left out")
	}
	fmt.Fprintln(t.out)
	switch {
	case o.Apply:
		fmt.Fprintf(t.out, "done; what was taken out is in %s\n", filepath.Join(r.Dir, "seglog.repair-*"))
	case o.KeepAfter:
		fmt.Fprintln(t.out, "nothing was changed: -apply does it")
	default:
		fmt.Fprintln(t.out, "nothing was changed: -apply does it, -keep keeps the good batches behind the damage")
	}
}

package seglog

// RepairOptions are the options of Repair. With the zero value, Repair changes nothing.
type RepairOptions struct {
	// Apply carries the repair out. Default: false, only report what would be done.
	Apply bool
	// KeepAfter keeps all good batches behind damage; readers then find offsets missing, which the format allows. Where the last
	// batches are lost, the log still ends at its recovery point, so that no offset is given out again. Default: false, the
	// log ends where the first damage begins.
	KeepAfter bool
	// MaxInflatedBytes is as in Options: a compressed batch that inflates to more is kept, and its records are not checked.
	// Default: 256 MiB.
	MaxInflatedBytes int64
}

// Removal is a part of a log that Repair takes out, or that is missing already.
type Removal struct {
	Path   string `json:"path"`
	Pos    int64  `json:"pos"`
	Bytes  int64  `json:"bytes"`           // 0 if only offsets are missing
	Offset int64  `json:"offset"`          // the offsets [Offset, Next) can't be read afterwards
	Next   int64  `json:"next"`            // -1: all offsets up to the end of the file
	Good   int64  `json:"good,omitempty"`  // how many good batches go too, since they lie behind the damage; of a segment into which Repair need not look, 0
	Saved  string `json:"saved,omitempty"` // file that keeps the bytes; "" if there is none, as for zeros
	Reason string `json:"reason"`
}

// RepairReport says what Repair did or, without Apply, would do.
type RepairReport struct {
	Dir     string    `json:"dir"`
	Applied bool      `json:"applied"`
	Removed []Removal `json:"removed"`
	Changes []string  `json:"changes"` // to seglog.state, and to leader epochs that a flipped bit had changed
	// The log as it is afterwards.
	Start   int64 `json:"start"`
	End     int64 `json:"end"`
	Batches int64 `json:"batches"`
	Records int64 `json:"records"`
	Bytes   int64 `json:"bytes"`
	Gaps    bool  `json:"gaps"` // offsets may be missing
}

// Sound reports whether there is nothing to repair.
func (r *RepairReport) Sound() bool { return len(r.Removed) == 0 && len(r.Changes) == 0 }

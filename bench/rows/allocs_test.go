package rows

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// TestAllocationsDoNotGrow compares the allocations per operation with fixed limits.
func TestAllocationsDoNotGrow(t *testing.T) {
	all, err := Allocations(t.TempDir())
	require.NoError(t, err)
	require.NotEmpty(t, all)
	for _, a := range all {
		require.LessOrEqual(t, a.Got, a.Limit, "allocations per operation: %s", a.Name)
	}
}

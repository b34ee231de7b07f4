package seglog

// RecoveryCase returns the letter of the recovery case whose text Open logs as found.
func RecoveryCase(finds string) string {
	for _, c := range append(recoveryCases, emptyLog) {
		if c.finds == finds {
			return string(c.id)
		}
	}
	return ""
}

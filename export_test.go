package seglog

// RecoveryCase is the letter of the decision with that text in the log line of Open.
func RecoveryCase(finds string) string {
	for _, c := range append(recoveryCases, emptyLog) {
		if c.finds == finds {
			return string(c.id)
		}
	}
	return ""
}

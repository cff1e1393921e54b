// Command promlint is `promtool check metrics`: the same lint, and nothing of the 300 modules of which promtool is
// made besides. It reads metrics on stdin, writes what is wrong with them to stderr and ends with promtool's codes: 0
// nothing, 1 not metrics at all, 3 there is something.
package main

import (
	"fmt"
	"os"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
)

func main() {
	// As promtool is called, so that either will do.
	if len(os.Args) != 3 || os.Args[1] != "check" || os.Args[2] != "metrics" {
		fmt.Fprintln(os.Stderr, "Usage: promlint check metrics < METRICS")
		os.Exit(2)
	}
	problems, err := promlint.New(os.Stdin).Lint()
	if err != nil {
		fmt.Fprintln(os.Stderr, "error while linting:", err)
		os.Exit(1)
	}
	for _, problem := range problems {
		fmt.Fprintln(os.Stderr, problem.Metric, problem.Text)
	}
	if len(problems) > 0 {
		os.Exit(3)
	}
}

// Command cluster builds and runs a real Kubernetes control plane for
// development and tests: etcd, kube-apiserver, kube-controller-manager and
// kubectl, built from their Go modules. It needs Go and nothing else: no
// containers, no downloads of binaries, no root.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"syscall"
)

const usage = `cluster runs a real Kubernetes control plane on this machine, without containers.

Usage:
  cluster build [flags]             build what is missing, print the directory of the programs
  cluster up [flags]                start a control plane, serve until the end, remove it
  cluster help                      print this

"cluster build --help" and "cluster up --help" tell more.

Environment:
  KUBERNETES          another minor of Kubernetes, such as 1.33 (default: that of
                      dev/cluster/go.mod)
  KUBEBUILDER_ASSETS  directory with etcd, kube-apiserver, kube-controller-manager or
                      kubectl: what it holds is used, what it lacks is built
  OPENTUNNEL_CACHE    where built programs are kept
                      (default: $XDG_CACHE_HOME/opentunnel-operator or
                      ~/.cache/opentunnel-operator); delete it whenever you like
`

const buildUsage = `Usage: cluster build [--node]

Makes sure that etcd, kube-apiserver, kube-controller-manager and kubectl exist
and prints the directory that holds all four. Nothing else goes to stdout;
progress goes to stderr. The first build takes about 5 minutes on two cores and
downloads 0.7 GB of Go modules; once built, it takes milliseconds.

Flags:
  --node  and kubelet, kube-proxy and kube-scheduler
`

const upUsage = `Usage: cluster up [--crds PATH] [--dir DIR] [--keep] [--node ADDRESS]

Builds what is missing (see "cluster build"), starts etcd, kube-apiserver and
kube-controller-manager on loopback, waits until they serve and prints one line
of JSON on stdout:

  {"kubeconfig": FILE, "auditLog": FILE, "server": URL, "bin": DIR, "dir": DIR}

kubeconfig is an administrator's; auditLog tells every request but those for
Leases and health endpoints; bin holds kubectl; dir holds everything, logs too.

The control plane ends, and its directory with it, on end of file on stdin, on
SIGINT, SIGTERM or SIGHUP (exit code 0), and when one of its processes dies
(exit code 1, the end of that process' log on stderr).

Lines that stdin understands:
  adopt PID       kill this process (SIGKILL) at the end, too
  forget PID      do not, after all
  pause PROGRAM   SIGSTOP to etcd, kube-apiserver or kube-controller-manager
  resume PROGRAM  SIGCONT
  stop PROGRAM    SIGKILL, and the others go on
  start PROGRAM   start it again, on the same port, with what is in the directory

Flags:
  --crds PATH file or directory of CustomResourceDefinitions to install before the
              controllers start. The garbage collector learns of a CRD that is
              installed later only after up to 40 seconds
  --dir DIR   directory to use; must not exist, or be empty; removed at the end
              (default: a new one in $TMPDIR)
  --keep      do not watch stdin: end by signal only
  --node ADDRESS
              serve a kubelet: listen on port 6443 of all addresses, of which this one
              is told to Pods; run kube-scheduler, kube-proxy and all controllers; write
              kubelet.kubeconfig into DIR, for a node called "node". kube-proxy writes
              the machine's iptables: call this as root in a network namespace of its
              own, as dev/e2e does
`

// The kernel kills a child when the thread that started it ends (Pdeathsig on
// Linux). The main thread lives as long as the process, so the main goroutine
// stays on it and starts all children.
func init() { runtime.LockOSThread() }

func main() {
	signals := []os.Signal{syscall.SIGINT, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) { // nohup
		signals = append(signals, syscall.SIGHUP)
	}
	ctx, stop := signal.NotifyContext(context.Background(), signals...)
	// Whoever reads our output may be gone; then a write fails and we clean up,
	// instead of dying of the signal. (Ignoring it would be inherited.)
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	code := run(ctx, os.Args[1:])
	stop()
	os.Exit(code)
}

// run carries out one command and returns the exit code: 0 done, 1 failed,
// 2 wrong usage.
func run(ctx context.Context, args []string) int {
	if len(args) == 0 {
		fmt.Fprint(os.Stderr, usage)
		return 2
	}
	flags := flag.NewFlagSet(args[0], flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	help, command := usage, func() error { fmt.Print(usage); return nil }
	switch args[0] {
	case "build":
		help = buildUsage
		node := flags.Bool("node", false, "")
		command = func() error { return build(ctx, *node) }
	case "up":
		help = upUsage
		var opts options
		flags.StringVar(&opts.crds, "crds", "", "")
		flags.StringVar(&opts.dir, "dir", "", "")
		flags.BoolVar(&opts.keep, "keep", false, "")
		flags.StringVar(&opts.node, "node", "", "")
		command = func() error { return up(ctx, opts) }
	case "help", "-h", "-help", "--help":
		args = args[:1]
	default:
		fmt.Fprintf(os.Stderr, "cluster: unknown command %q\n\n%s", args[0], usage)
		return 2
	}
	err := flags.Parse(args[1:])
	if errors.Is(err, flag.ErrHelp) {
		fmt.Print(help)
		return 0
	}
	if err == nil && flags.NArg() > 0 {
		err = fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "cluster: %v\n\n%s", err, help)
		return 2
	}
	if err := command(); err != nil {
		fmt.Fprintf(os.Stderr, "cluster: %v\n", err)
		return 1
	}
	return 0
}

// say prints one line of progress.
func say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "cluster: "+format+"\n", args...)
}

package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

// readyTimeout is many times what a start takes on a loaded machine.
const readyTimeout = 2 * time.Minute

// options are the flags of `up`.
type options struct {
	crds, dir, node string
	keep            bool
}

// controlPlane is a running control plane and what must be removed with it.
type controlPlane struct {
	bin, dir string
	creds    *credentials
	children []*child // in the order of their start
	died     chan *child
}

// order is to pause, resume, stop or start a program of the control plane.
type order struct{ verb, name string }

// up runs a control plane until the end. A clean end is no error.
func up(ctx context.Context, opts options) error {
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	others := &adopted{}
	defer others.kill()
	orders := make(chan order, 32)
	if !opts.keep {
		go func() {
			others.listen(os.Stdin, orders)
			end(errStdinClosed)
		}()
	}
	err := serve(ctx, opts, others, orders)
	if ctx.Err() != nil && errors.Is(err, context.Cause(ctx)) {
		say("the end: %v", err)
		return nil
	}
	return err
}

// serve starts a control plane, says where it is and waits. It returns only
// after all of it has been removed.
func serve(ctx context.Context, opts options, others *adopted, orders <-chan order) error {
	if opts.crds != "" {
		if _, err := os.Stat(opts.crds); err != nil {
			return fmt.Errorf("--crds: %w", err)
		}
	}
	if opts.node != "" {
		if err := inOwnNetwork(opts.node); err != nil {
			return fmt.Errorf("--node %s: %w", opts.node, err)
		}
	}
	bin, err := ensurePrograms(ctx, needed(opts.node != ""))
	if err != nil {
		return err
	}
	start := time.Now()
	syscall.Umask(0o077)
	dir, err := makeDir(opts.dir)
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	lock, err := holdDir(dir)
	if err != nil {
		return err
	}
	defer lock.Close()

	plane := &controlPlane{bin: bin, dir: dir, died: make(chan *child, 32)}
	defer plane.stop()
	defer others.kill() // first: they need not see their API server go
	server, err := plane.start(ctx, opts)
	if err != nil {
		return err
	}
	say("ready in %.1f s", time.Since(start).Seconds())
	if err := json.NewEncoder(os.Stdout).Encode(map[string]string{
		"kubeconfig": filepath.Join(dir, fileKubeconfig),
		"auditLog":   filepath.Join(dir, fileAuditLog),
		"server":     server,
		"bin":        bin,
		"dir":        dir,
	}); err != nil {
		return err
	}
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case dead := <-plane.died:
			if dead.stopped {
				continue
			}
			return dead.withLog(fmt.Sprintf("%s ended: %v", dead.name, dead.cmd.ProcessState))
		case order := <-orders:
			if err := plane.obey(order); err != nil {
				say("%v", err)
			}
		}
	}
}

// obey pauses a program, or stops it as by a crash, or starts it again with what
// is in the directory by then. It does not wait until a program serves.
func (p *controlPlane) obey(o order) error {
	at := slices.IndexFunc(p.children, func(c *child) bool { return c.name == o.name })
	if at < 0 {
		return fmt.Errorf("no program of the control plane is called %q", o.name)
	}
	c := p.children[at]
	switch o.verb {
	case "pause":
		return c.cmd.Process.Signal(syscall.SIGSTOP)
	case "resume":
		return c.cmd.Process.Signal(syscall.SIGCONT)
	case "stop":
		c.stopped = true // first: nobody is to take it for a failure
		c.kill()
		return nil
	}
	if !c.ended() {
		return fmt.Errorf("%s runs", o.name)
	}
	again, err := startChild(c.cmd.Path, p.dir, c.cmd.Args[1:])
	if err != nil {
		return err
	}
	p.children[at] = again
	p.watch(again)
	return nil
}

// start starts all processes and waits until they serve.
func (p *controlPlane) start(ctx context.Context, opts options) (server string, err error) {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	if p.creds, err = newCredentials(opts.node); err != nil {
		return "", err
	}
	if err := writeConfig(p.dir, p.creds); err != nil {
		return "", err
	}
	etcd, err := p.spawn("etcd", etcdArgs())
	if err != nil {
		return "", err
	}
	if err := p.await(ctx, etcd, func() error {
		_, err := os.Stat(filepath.Join(p.dir, etcdSocket))
		return err
	}); err != nil {
		return "", err
	}
	server, err = p.startAPIServer(ctx, opts.node)
	if err != nil {
		return "", err
	}
	if opts.crds != "" {
		if err := p.installCRDs(ctx, opts.crds); err != nil {
			return "", err
		}
	}
	controllers, err := p.spawn("kube-controller-manager", controllerManagerArgs(opts.node != ""))
	if err != nil {
		return "", err
	}
	if opts.node != "" {
		if _, err := p.spawn("kube-scheduler", schedulerArgs()); err != nil {
			return "", err
		}
		if _, err := p.spawn("kube-proxy", proxyArgs()); err != nil {
			return "", err
		}
	}
	return server, p.await(ctx, controllers, p.get(server, "/api/v1/namespaces/default/serviceaccounts/default"))
}

// startAPIServer tries again when its port is taken between being found free
// and being used.
func (p *controlPlane) startAPIServer(ctx context.Context, node string) (string, error) {
	for try := 1; ; try++ {
		port, err := freePort()
		if err != nil {
			return "", err
		}
		if node != "" {
			port = 6443
		}
		server := fmt.Sprintf("https://127.0.0.1:%d", port)
		if err := writeKubeconfigs(p.dir, server, p.creds); err != nil {
			return "", err
		}
		apiserver, err := p.spawn("kube-apiserver", apiserverArgs(port, node))
		if err != nil {
			return "", err
		}
		for _, path := range []string{"/readyz", "/api/v1/namespaces/default"} {
			if err = p.await(ctx, apiserver, p.get(server, path)); err != nil {
				break
			}
		}
		if err == nil {
			return server, nil
		}
		log, _ := os.ReadFile(apiserver.log)
		if try == 5 || !apiserver.ended() || !bytes.Contains(log, []byte("address already in use")) {
			return "", err
		}
		p.children = p.children[:len(p.children)-1]
	}
}

// installCRDs installs CRDs and waits until the API server serves them.
func (p *controlPlane) installCRDs(ctx context.Context, path string) error {
	cache := filepath.Join(p.dir, "kubectl-cache")
	defer os.RemoveAll(cache)
	for _, args := range [][]string{
		{"create", "-f", path},
		{"wait", "--for=condition=Established", "-f", path},
	} {
		kubectl := exec.CommandContext(ctx, filepath.Join(p.bin, "kubectl"), append([]string{
			"--kubeconfig=" + filepath.Join(p.dir, fileKubeconfig),
			"--cache-dir=" + cache,
		}, args...)...)
		kubectl.Env = append(os.Environ(), "KUBERC=off") // no preferences of the user's
		kubectl.SysProcAttr = childAttributes()
		if out, err := kubectl.CombinedOutput(); ctx.Err() != nil {
			return context.Cause(ctx)
		} else if err != nil {
			return fmt.Errorf("--crds %s: kubectl %s: %w\n%s", path, args[0], err, bytes.TrimSpace(out))
		}
	}
	return nil
}

// inOwnNetwork says that the address is one of a network namespace that has no
// way out: kube-proxy is not to write the iptables of somebody's machine, and
// nobody else is to reach its kubelet.
func inOwnNetwork(address string) error {
	listener, err := net.Listen("tcp", net.JoinHostPort(address, "0"))
	if err != nil {
		return fmt.Errorf("not an address of this machine: %w", err)
	}
	listener.Close()
	// TEST-NET-1, which routers do not know either: no packet is sent.
	if way, err := net.Dial("udp", "192.0.2.1:9"); err == nil {
		way.Close()
		return errors.New("this network namespace has a way out: call it in one of its own (unshare --net)")
	}
	return nil
}

func freePort() (int, error) {
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer listener.Close()
	return listener.Addr().(*net.TCPAddr).Port, nil
}

func (p *controlPlane) spawn(name string, args []string) (*child, error) {
	c, err := startChild(filepath.Join(p.bin, name), p.dir, args)
	if err != nil {
		return nil, err
	}
	p.children = append(p.children, c)
	p.watch(c)
	return c, nil
}

func (p *controlPlane) watch(c *child) {
	go func() {
		<-c.done
		p.died <- c
	}()
}

// await asks until the answer is no error. It gives up when a process dies.
func (p *controlPlane) await(ctx context.Context, c *child, ask func() error) error {
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	for {
		err := ask()
		if err == nil {
			return nil
		}
		select {
		case dead := <-p.died:
			return dead.withLog(fmt.Sprintf("%s ended: %v", dead.name, dead.cmd.ProcessState))
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return c.withLog(fmt.Sprintf("%s is not ready after %v: %v", c.name, readyTimeout, err))
			}
			return context.Cause(ctx)
		case <-ticker.C:
		}
	}
}

// get returns a function that asks the API server for a path, as admin.
func (p *controlPlane) get(server, path string) func() error {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(p.creds.ca)
	client := &http.Client{
		Timeout: 5 * time.Second,
		// No Proxy: the server is on this machine, whatever the environment says.
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, DisableKeepAlives: true},
	}
	return func() error {
		request, err := http.NewRequest(http.MethodGet, server+path, nil)
		if err != nil {
			return err
		}
		request.Header.Set("Authorization", "Bearer "+p.creds.adminToken)
		response, err := client.Do(request)
		if err != nil {
			return err
		}
		defer response.Body.Close()
		if response.StatusCode != http.StatusOK {
			return fmt.Errorf("GET %s: %s", path, response.Status)
		}
		return nil
	}
}

// stop kills all processes, the last started first: an API server that has lost
// its etcd would linger. Nothing in them is worth a polite end.
func (p *controlPlane) stop() {
	for i := len(p.children) - 1; i >= 0; i-- {
		p.children[i].kill()
	}
}

package main

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/debvisor/debvisor/integration/lab"
)

// syncoid is Debian's, on the source, which reaches the target by ssh.
type syncoid struct {
	p      *pools
	dir    string // where both machines see Debian's packages unpacked
	daemon *lab.Process
}

// sshPort is where the target's sshd listens.
const sshPort = "7022"

// prepareSource makes a key and prints what the target is to let in.
const prepareSource = `mkdir -p /root/.ssh
chmod -R go-rwx /root
"$1/usr/bin/ssh-keygen" -q -t ed25519 -N '' -f /root/.ssh/id
cat /root/.ssh/id.pub`

// prepareTarget gives the target a key, an account for sshd to shed its rights to,
// and what it is to let in. It prints its own key.
const prepareTarget = `mkdir -p /run/sshd /root/.ssh
grep -q ^sshd: /etc/passwd || echo 'sshd:x:65533:65534::/run/sshd:/usr/sbin/nologin' >>/etc/passwd
"$1/usr/bin/ssh-keygen" -q -t ed25519 -N '' -f /root/.ssh/host
echo "$3" >/root/.ssh/authorized_keys
cat >/root/.ssh/sshd_config <<C
Port $2
HostKey /root/.ssh/host
PermitRootLogin yes
AuthorizedKeysFile /root/.ssh/authorized_keys
PidFile none
SetEnv PATH=$1/usr/bin:$PATH
C
chmod -R go-rwx /root
cat /root/.ssh/host.pub`

// syncoid unpacks Debian's packages where the machines see them, and has the target
// let the source in.
func (p *pools) syncoid(ctx context.Context) (*syncoid, error) {
	s := &syncoid{p: p, dir: filepath.Join(p.b.lab.Dir, "shared", "syncoid")}
	for _, args := range [][]string{{".ci/syncoid-get", "build/tools/syncoid"}, {"cp", "-r", "build/tools/syncoid", s.dir}} {
		if out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("unpacking syncoid: %w: %s", err, out)
		}
	}
	own, err := script(ctx, p.from, prepareSource, s.dir)
	if err != nil {
		return nil, err
	}
	host, err := script(ctx, p.to, prepareTarget, s.dir, sshPort, own)
	if err != nil {
		return nil, err
	}
	known := fmt.Sprintf("[%s]:%s %s", p.to.Addr, sshPort, host)
	if _, err := script(ctx, p.from, `echo "$1" >/root/.ssh/known_hosts`, known); err != nil {
		return nil, err
	}
	s.daemon, err = p.to.Start(lab.Command{
		Name: "sshd", Args: []string{s.dir + "/usr/sbin/sshd", "-D", "-e", "-f", "/root/.ssh/sshd_config"},
		Env: []string{"LD_LIBRARY_PATH=" + s.dir + "/usr/lib/x86_64-linux-gnu"}, Log: filepath.Join(p.b.lab.Dir, "logs", "sshd.log"),
	})
	return s, err
}

// run has syncoid bring over what snapshots there are, with the flags that we send
// and receive with, and gives the time from its start to its end.
func (s *syncoid) run(ctx context.Context, name, copied string) (time.Duration, error) {
	const lines = `export PERL5LIB=$1/usr/share/perl5 PATH=$1/usr/bin:$PATH
exec "$1/usr/sbin/syncoid" --quiet --no-sync-snap --sendoptions='L c e' --recvoptions=u --compress=none --sshport="$2" --sshkey=/root/.ssh/id "$3" "$4"`
	begun := time.Now()
	_, err := script(ctx, s.p.from, lines, s.dir, sshPort, path(name), "root@"+s.p.to.Addr+":"+path(copied))
	return time.Since(begun), err
}

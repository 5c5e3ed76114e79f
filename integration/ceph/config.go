package ceph

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Files of a cluster's directory, besides the clients' in etc.
const (
	daemonsConf = "daemons.conf"
	bootKeyring = "boot.keyring" // with everybody's keys, for the monitor's first start
)

// caps are the capabilities of the users. Profile rbd may put clients on the blocklist, and nothing lets it take them off again.
var caps = map[string][]string{
	"client." + Admin:   {`mon = "allow *"`, `osd = "allow *"`, `mgr = "allow *"`, `mds = "allow *"`},
	"client." + Agent:   {`mon = "profile rbd, allow command \"osd blocklist\" with blocklistop=rm"`, `osd = "profile rbd"`, `mgr = "profile rbd"`},
	"client." + Libvirt: {`mon = "profile rbd"`, `osd = "profile rbd"`, `mgr = "profile rbd"`},
	"mon.":              {`mon = "allow *"`},
}

// Conf is the path of the clients' ceph.conf, for clients that see the cluster's directory as the Place does.
func (c *Cluster) Conf() string { return filepath.Join(c.opts.Dir, "etc", "ceph.conf") }

// Key is the secret of a user, as libvirt's secrets and keyrings have it.
func (c *Cluster) Key(user string) string { return c.keys["client."+user] }

// Pools are the pools that the cluster was started with.
func (c *Cluster) Pools() []string { return c.opts.Pools }

// Monitors are the addresses and ports of the monitors, host:port.
func (c *Cluster) Monitors() []string { return []string{c.opts.Address + ":3300"} }

func (c *Cluster) monitors() string { return "[v2:" + c.opts.Address + ":3300/0]" }

// Hand writes a ceph.conf and the keyrings of some users to a directory, for clients that see it as seen: "/etc/ceph".
func (c *Cluster) Hand(dir, seen string, users ...string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	failed := []error{os.WriteFile(filepath.Join(dir, "ceph.conf"), []byte(strings.Join([]string{
		"[global]",
		"fsid = " + c.FSID,
		"mon_host = " + c.monitors(),
		"auth_cluster_required = cephx",
		"auth_service_required = cephx",
		"auth_client_required = cephx",
		"keyring = " + filepath.Join(seen, "ceph.$name.keyring"),
		"rbd_default_features = 61", // layering, exclusive-lock, object-map, fast-diff, deep-flatten
		"",
	}, "\n")), 0o644)}
	for _, user := range users {
		entity := "client." + user
		failed = append(failed, os.WriteFile(filepath.Join(dir, "ceph."+entity+".keyring"), keyring(entity, c.keys[entity]), 0o600))
	}
	return errors.Join(failed...)
}

// write makes the cluster's directory with all that its daemons read at their first start.
func (c *Cluster) write() error {
	boot := ""
	add := func(entity string, caps []string) string {
		c.keys[entity] = newKey()
		ring := string(keyring(entity, c.keys[entity]))
		boot += ring + "\tcaps " + strings.Join(caps, "\n\tcaps ") + "\n"
		return ring
	}
	for entity, may := range caps {
		add(entity, may)
	}
	dirs := []string{"mon", "log"}
	files := map[string]string{daemonsConf: c.daemonsText()}
	for i := range c.opts.OSDs {
		entity := fmt.Sprintf("osd.%d", i)
		dirs = append(dirs, entity)
		files[entity+".keyring"] = add(entity, []string{`mon = "allow profile osd"`, `mgr = "allow profile osd"`, `osd = "allow *"`})
	}
	files[bootKeyring] = boot
	for _, dir := range dirs {
		if err := os.MkdirAll(c.path(dir), 0o755); err != nil {
			return err
		}
	}
	for name, text := range files {
		if err := os.WriteFile(c.path(name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	etc := c.path("etc")
	return c.Hand(etc, etc, Admin, Agent, Libvirt)
}

// daemonsText is the daemons' configuration: small, quick to answer, and with nothing outside of the directory.
func (c *Cluster) daemonsText() string {
	return strings.Join([]string{
		"[global]",
		"fsid = " + c.FSID,
		"mon_host = " + c.monitors(),
		"public_addr = " + c.opts.Address,
		"cluster_addr = " + c.opts.Address,
		"ms_bind_msgr1 = false",
		"auth_cluster_required = cephx",
		"auth_service_required = cephx",
		"auth_client_required = cephx",
		"auth_allow_insecure_global_id_reclaim = false",
		"keyring = " + c.path("$name.keyring"),
		"run_dir = " + c.opts.Dir,
		"crash_dir = " + c.opts.Dir,
		"log_file = " + c.path("log/$name.log"),
		"admin_socket = ",
		"pid_file = ",
		fmt.Sprintf("osd_pool_default_size = %d", c.opts.Size),
		"osd_pool_default_min_size = 1",
		"osd_pool_default_pg_num = 8",
		"osd_pool_default_pgp_num = 8",
		"osd_pool_default_pg_autoscale_mode = off",
		"osd_crush_chooseleaf_type = 0", // all OSDs are on one host
		// 1000 s: a pool of size 1 whose OSD stood still for longer than that serves nothing for good ("waiting for readable"), as
		// only another OSD's acknowledgement of a lease would end it (Ceph 16).
		"osd_pool_default_read_lease_ratio = 50",
		"[mon]",
		"mon_data = " + c.path("mon"),
		"mon_cluster_log_to_file = false",
		"mon_allow_pool_delete = true",
		"mon_allow_pool_size_one = true",
		"mon_warn_on_pool_no_redundancy = false",
		"mon_osd_min_down_reporters = 1",
		"mon_osd_initial_require_min_compat_client = luminous",
		"mon_mgr_mkfs_grace = 1000000000", // there is no manager, and that is well
		"mon_data_avail_warn = 2",
		"mon_data_avail_crit = 1",
		"paxos_propose_interval = 0.02",
		"[osd]",
		"osd_data = " + c.path("$name"),
		"osd_objectstore = " + string(c.opts.Store),
		"osd_crush_update_on_start = false",
		fmt.Sprintf("osd_fast_shutdown = %t", c.opts.Store == Bluestore), // memstore saves itself in a slow one only
		"osd_class_load_list = *",
		"osd_class_default_list = *",
		"osd_memory_target = 939524096",
		fmt.Sprintf("memstore_device_bytes = %d", c.opts.GiB<<30),
		fmt.Sprintf("bluestore_block_size = %d", c.opts.GiB<<30),
		"bluestore_block_db_create = false",
		"bluestore_block_wal_create = false",
		"bluestore_fsck_on_mkfs = false",
		"bluestore_cache_autotune = false",
		"bluestore_cache_size = 67108864",
		"osd_max_markdown_count = 10000", // tests kill it often
		"",
	}, "\n")
}

func keyring(entity, key string) []byte {
	return fmt.Appendf(nil, "[%s]\n\tkey = %s\n", entity, key)
}

// newKey makes a cephx key: its type (AES), when it was made (two words, not told), the length of the secret and the secret.
func newKey() string {
	const secret = 16
	raw := binary.LittleEndian.AppendUint16(nil, 1)
	raw = append(raw, make([]byte, 8)...)
	raw = binary.LittleEndian.AppendUint16(raw, secret)
	raw = append(raw, make([]byte, secret)...)
	_, _ = rand.Read(raw[len(raw)-secret:]) // never fails
	return base64.StdEncoding.EncodeToString(raw)
}

package embed

import "strconv"

// settings are given on the command line and not in the data directory, so
// that a new binary brings its own. Durability is what the product promises:
// the three switches are written out although they are the defaults.
func (p *Postgres) settings() []string {
	e := p.env
	set := []string{
		"listen_addresses=127.0.0.1",
		"port=" + strconv.Itoa(p.port),
		"unix_socket_directories=", // their paths are limited to 107 bytes
		"fsync=on",
		"synchronous_commit=on",
		"full_page_writes=on",

		// Several servers share the machine with everything else.
		"max_connections=100",
		"shared_buffers=256MB",
		"effective_cache_size=1GB",
		"wal_buffers=16MB",
		"random_page_cost=1.1",
		"jit=off",
		"commit_delay=0",

		// Every page costs a full image after a checkpoint: make those rare, the
		// price is a recovery of up to this much log after a crash.
		"max_wal_size=4GB",
		"min_wal_size=512MB",
		"checkpoint_timeout=15min",
		"wal_compression=" + p.walCompression,

		// A migration locks every partition of every table at once.
		"max_locks_per_transaction=256",

		"timezone=UTC",
		"log_timezone=UTC",
		"lc_messages=C", // we read the log when a start goes wrong
		"log_destination=stderr",
		"logging_collector=off",
		"log_line_prefix=%m [%p] %q%u@%d ",
	}
	if e.programs.stats {
		set = append(set, "shared_preload_libraries=pg_stat_statements")
	}
	if e.fast {
		// The last one wins. What is lost is only what the operating system
		// had not written when it crashed itself.
		set = append(set, "fsync=off", "shared_buffers=64MB", "max_connections=400", "max_wal_size=1GB", "min_wal_size=128MB")
	}
	var args []string
	for _, s := range set {
		args = append(args, "-c", s)
	}
	return args
}

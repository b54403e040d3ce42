//go:build planted

package planted

// Bugs in how holds are woken.
var triggerBugs = []Bug{
	{
		Name:    "redis_is_the_truth",
		About:   "What matured is read from Redis alone: PostgreSQL is only swept for the future, nobody drives what Redis forgot.",
		Catches: "triggers-stolen, redis-down: I12 overdue (PENDING for ever). After a FLUSHALL the sweeper mends what is up to 2 s late",
		Edits: []Edit{{"scheduler/overdue.go", `	drain := s.mayDrive(st) && late > after
`, `	drain := s.mayDrive(st) && late > after && late < 0
`}},
	},
	{
		Name:    "zrem_before_commit",
		About:   "A due trigger is removed when it is popped, not when its claim is committed. The overdue dispatch alone would mend that, so it also believes a Redis that answers.",
		Catches: "die-at-zset-claimed: I12 overdue, if the process starts again more than 2 s after its death; sooner, its first sweep mends it",
		Edits: []Edit{
			{"scheduler/zset.go", `  redis.call('ZADD', KEYS[2], unpack(taken))
`, ``},
			{"scheduler/overdue.go", `	drain := s.mayDrive(st) && late > after
`, `	drain := s.mayDrive(st) && late > after && !s.redisUp.Load()
`},
		},
	},
}

//go:build planted

package planted

// Bugs in how holds are woken.
var triggerBugs = []Bug{
	{
		Name:    "redis_is_the_truth",
		About:   "What matured is read from Redis alone: PostgreSQL is only swept for the future, nobody drives what Redis forgot.",
		Catches: "Redis FLUSHALL, kill -9 empty or down: I12 (overdue for ever)",
		Edits: []Edit{{"scheduler/overdue.go", `	drain := s.mayDrive(st) && late > after
`, `	drain := s.mayDrive(st) && late > after && late < 0
`}},
	},
	{
		Name:    "zrem_before_commit",
		About:   "A due trigger is removed when it is popped, not when its claim is committed. The overdue dispatch alone would mend that, so it also believes a Redis that answers.",
		Catches: "exit at zset_claimed: I12 (overdue for ever)",
		Edits: []Edit{
			{"scheduler/zset.go", `  redis.call('ZADD', KEYS[2], unpack(taken))
`, ``},
			{"scheduler/overdue.go", `	drain := s.mayDrive(st) && late > after
`, `	drain := s.mayDrive(st) && late > after && !s.redisUp.Load()
`},
		},
	},
}

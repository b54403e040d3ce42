package bench

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
)

// Table writes one run, or the medians of several, for a person.
func (s *Summary) Table(w io.Writer) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(name, format string, args ...any) { fmt.Fprintf(t, "%s\t%s\n", name, fmt.Sprintf(format, args...)) }
	row("scenario", "%s, %.1f s measured, %d clients, %d processes, %d senders, %d recipients", s.Scenario, s.DurationS, s.Clients,
		s.Processes, s.Senders, s.Recipients)
	if len(s.Runs) > 1 {
		row("runs", "%d: medians, least to greatest in brackets", len(s.Runs))
	}
	s.rates(row)
	s.costs(row)
	for _, name := range slices.Sorted(maps.Keys(s.Figures)) {
		row(strings.ReplaceAll(name, "_", " "), "%s%s", short(s.Figures[name]), s.spread("figures."+name))
	}
	for _, code := range slices.Sorted(maps.Keys(s.Errors)) {
		row("error", "%s × %d", code, s.Errors[code])
	}
	proof := "ok"
	if !s.LedgerOK {
		proof = "NOT PROVEN"
	}
	row("ledger", "%s", proof)
	t.Flush()
}

type rowWriter func(name, format string, args ...any)

func (s *Summary) rates(row rowWriter) {
	row("created", "%.0f/s (%d)%s", s.CreatedPerS, s.Created, s.spread("created_per_s"))
	row("create latency", "p50 %.1f%s  p99 %.1f%s  max %.1f ms", s.CreateP50, s.spread("create_p50_ms"), s.CreateP99,
		s.spread("create_p99_ms"), s.CreateMax)
	if s.Cancelled > 0 {
		row("cancelled", "%.0f/s (%d)%s", s.CancelledPerS, s.Cancelled, s.spread("cancelled_per_s"))
		row("cancel latency", "p50 %.1f  p99 %.1f  max %.1f ms", s.CancelP50, s.CancelP99, s.CancelMax)
	}
	if s.Executed > 0 {
		estimated := ""
		if s.LagSampled {
			estimated = ", estimated from a sample"
		}
		row("executed", "%.0f/s (%d%s)%s", s.ExecutedPerS, s.Executed, estimated, s.spread("executed_per_s"))
		row("execution lag", "p50 %.1f%s  p99 %.1f%s  max %.1f ms", s.LagP50, s.spread("lag_p50_ms"), s.LagP99,
			s.spread("lag_p99_ms"), s.LagMax)
		if s.Seen > 0 {
			row("until others see it", "p50 %.1f%s  p99 %.1f%s ms, of it the commit p50 %.1f  p99 %.1f ms (%d holds watched)", s.SeenP50,
				s.spread("lag_seen_p50_ms"), s.SeenP99, s.spread("lag_seen_p99_ms"), s.CommitP50, s.CommitP99, s.Seen)
		}
	}
	if s.Early > 0 {
		row("EARLY", "%d holds were executed before their time", s.Early)
	}
	if !s.Settled {
		row("not ended", "%d holds", s.Open)
	}
	if s.YardstickPerS > 0 {
		row("yardstick", "%.0f/s%s (pgbench, 64 clients, UPDATE + INSERT)", s.YardstickPerS, s.spread("yardstick_per_s"))
		ratios := fmt.Sprintf("created %.2f%s", s.CreatedPerYardstick, s.spread("created_per_yardstick"))
		if s.Cancelled > 0 {
			ratios += fmt.Sprintf("  cancelled %.2f%s", s.CancelledPerYardstick, s.spread("cancelled_per_yardstick"))
		}
		if s.Executed > 0 {
			ratios += fmt.Sprintf("  executed %.2f%s", s.ExecutedPerYardstick, s.spread("executed_per_yardstick"))
		}
		row("ratio to it", "%s", ratios)
	}
}

func (s *Summary) costs(row rowWriter) {
	var cpu, each []string
	for _, role := range slices.Sorted(maps.Keys(s.CPUSeconds)) {
		cpu = append(cpu, fmt.Sprintf("%s %.1f s", role, s.CPUSeconds[role]))
		each = append(each, fmt.Sprintf("%s %.3f", role, s.CPUMSPerHoldByRole[role]))
	}
	row("CPU", "%s", strings.Join(cpu, "  "))
	if s.CPUMSPerHold > 0 {
		row("CPU ms per hold", "%s", strings.Join(each, "  "))
		text := fmt.Sprintf("%.3f ms per hold%s", s.CPUMSPerHold, s.spread("cpu_ms_per_hold"))
		if s.Executed > 0 {
			text += fmt.Sprintf(", %.3f ms per lifecycle%s", s.CPUMSPerLifecycle, s.spread("cpu_ms_per_lifecycle"))
		}
		row("CPU of the product", "%s", text)
	}
	if s.WALBytes > 0 {
		row("WAL", "%.0f bytes per hold%s, %d checkpoints", s.WALBytesPerHold, s.spread("wal_bytes_per_hold"), s.Checkpoints)
		row("disk", "%.0f bytes per hold%s, with indexes", s.DiskBytesPerHold, s.spread("disk_bytes_per_hold"))
	}
	if s.RedisBytesPerTrigger > 0 {
		row("Redis", "%.0f bytes per trigger (%d triggers)", s.RedisBytesPerTrigger, s.Triggers)
	}
	if s.RSSBytes > 0 {
		row("memory", "%.0f MiB resident at most (Go process)", float64(s.RSSBytes)/(1<<20))
	}
}

// spread is the least and the greatest value of a figure, in brackets.
func (s *Summary) spread(name string) string {
	x, there := s.Spread[name]
	if !there {
		return ""
	}
	return fmt.Sprintf(" [%s–%s]", short(x.Min), short(x.Max))
}

// short writes a number with as many digits as say something.
func short(x float64) string {
	switch a := max(x, -x); {
	case a >= 100:
		return fmt.Sprintf("%.0f", x)
	case a >= 10:
		return fmt.Sprintf("%.1f", x)
	case a >= 1:
		return fmt.Sprintf("%.2f", x)
	}
	return fmt.Sprintf("%.3f", x)
}

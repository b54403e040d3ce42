package chaos

import (
	"cmp"
	"math/rand/v2"
	"slices"
	"time"
)

// dozen is the size of the short selection.
const dozen = 12

// DaySeed is the seed of the short selection: another one every day, the same
// for everybody on that day (UTC).
func DaySeed(now time.Time) int64 { return now.Unix() / 86400 }

// Pick draws the short selection from the quick faults that run on the common
// cluster: first one of every theme, so that no day goes without one of them,
// then any. One seed always gives the same faults.
func Pick(all []Fault, seed int64) []Fault {
	random := rand.New(rand.NewPCG(uint64(seed), 0x7069636b))
	var pool []Fault
	for _, f := range all {
		if f.Quick && !f.Heavy && f.Cluster == "" && (f.Can == nil || f.Can() == "") {
			pool = append(pool, f)
		}
	}
	random.Shuffle(len(pool), func(i, j int) { pool[i], pool[j] = pool[j], pool[i] })
	nth := map[string]int{}
	rank := make(map[string]int, len(pool))
	for _, f := range pool {
		rank[f.Name] = nth[f.Theme]
		nth[f.Theme]++
	}
	slices.SortStableFunc(pool, func(a, b Fault) int { return cmp.Compare(min(1, rank[a.Name]), min(1, rank[b.Name])) })
	return pool[:min(dozen, len(pool))]
}

// byCluster brings the faults of one cluster together, the common one first:
// starting a cluster costs more than most faults.
func byCluster(faults []Fault) []Fault {
	out := slices.Clone(faults)
	first := map[string]int{"": -1}
	for i, f := range out {
		if _, seen := first[f.Cluster]; !seen {
			first[f.Cluster] = i
		}
	}
	slices.SortStableFunc(out, func(a, b Fault) int { return cmp.Compare(first[a.Cluster], first[b.Cluster]) })
	return out
}

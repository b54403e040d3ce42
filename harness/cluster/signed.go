package cluster

import (
	"fmt"

	"github.com/holdfast-escrow/holdfast/internal/branch"
)

// Steps speaks the branch protocol with one participant, past every link and
// with the cluster's own signature.
func (c *Cluster) Steps(participant int) (branch.Client, error) {
	t, err := branch.NewHTTP(branch.HTTPConfig{URLs: []string{"http://" + c.Process(Participant, participant).Branch},
		Secret: []byte(c.branch), Shards: c.cfg.Shards})
	if err != nil {
		return branch.Client{}, fmt.Errorf("speak to participant%d: %w", participant, err)
	}
	return branch.Client{T: t}, nil
}

package workload

// Redirect sends a world to another API from now on.
func Redirect(w *World, api string) { w.cfg.APIs = []string{api} }

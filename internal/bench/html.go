package bench

import (
	"fmt"
	"html/template"
	"os"
	"strings"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// WriteHTML writes the report as one page without outside parts: the table, the
// time line of creates and the distributions of latency and lag.
func (r *Report) WriteHTML(path string) error {
	var table strings.Builder
	r.Table(&table)
	f, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	line := make([]point, len(r.PerSecond))
	for i, n := range r.PerSecond {
		line[i] = point{float64(i), float64(n)}
	}
	err = page.Execute(f, map[string]any{"Scenario": r.Scenario, "At": r.StartedAt, "Table": table.String(),
		"Charts": []chart{
			draw("Creates in each second", "s", "holds", line),
			draw("Create latency by percentile", "%", "ms", percentiles(r.create)),
			draw("Execution lag by percentile", "%", "ms", percentiles(r.lags)),
		}})
	if err != nil {
		f.Close()
		return fmt.Errorf("write the report: %w", err)
	}
	return f.Close()
}

type point struct{ x, y float64 }

type chart struct {
	Title, Points, Low, High, Left, Right string
	Empty                                 bool
}

// Size of a chart in its own units.
const chartWidth, chartHeight = 600.0, 160.0

func draw(title, xUnit, yUnit string, points []point) chart {
	c := chart{Title: title, Empty: len(points) < 2}
	if c.Empty {
		return c
	}
	most := 0.0
	for _, p := range points {
		most = max(most, p.y)
	}
	from, to := points[0].x, points[len(points)-1].x
	var b strings.Builder
	for _, p := range points {
		fmt.Fprintf(&b, "%.1f,%.1f ", (p.x-from)/(to-from)*chartWidth, chartHeight-p.y/max(most, 1e-9)*chartHeight)
	}
	c.Points = b.String()
	c.Low, c.High = "0", fmt.Sprintf("%.1f %s", most, yUnit)
	c.Left, c.Right = fmt.Sprintf("%.0f %s", from, xUnit), fmt.Sprintf("%.1f %s", to, xUnit)
	return c
}

func percentiles(h *hdrhistogram.Histogram) []point {
	if h == nil || h.TotalCount() == 0 {
		return nil
	}
	var all []point
	for q := 0.0; q < 99.95; q += 0.5 {
		all = append(all, point{q, ms(h, q)})
	}
	return append(all, point{99.9, ms(h, 99.9)})
}

var page = template.Must(template.New("report").Parse(`<!doctype html><html lang="en"><meta charset="utf-8">
<title>Holdfast benchmark: {{.Scenario}}</title>
<style>body{font:15px system-ui,sans-serif;max-width:46rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}
pre{background:#f4f4f4;padding:1rem;overflow-x:auto}svg{width:100%;height:auto}figcaption{font-weight:600}
@media (prefers-color-scheme:dark){body{color:#ddd;background:#181818}pre{background:#242424}}</style>
<h1>Benchmark: {{.Scenario}}</h1><p>Started at {{.At}}.</p><pre>{{.Table}}</pre>
{{range .Charts}}{{if not .Empty}}<figure><figcaption>{{.Title}}</figcaption>
<svg viewBox="-10 -20 620 210" role="img" aria-label="{{.Title}}">
<polyline points="{{.Points}}" fill="none" stroke="#3a7" stroke-width="2"/>
<text x="0" y="-6" font-size="12" fill="currentColor">{{.High}}</text>
<text x="0" y="178" font-size="12" fill="currentColor">{{.Left}}</text>
<text x="600" y="178" font-size="12" fill="currentColor" text-anchor="end">{{.Right}}</text></svg></figure>{{end}}{{end}}
</html>
`))

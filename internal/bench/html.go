package bench

import (
	"fmt"
	"html/template"
	"os"
	"strings"
)

// section is one row of a report page: its figures and its charts.
type section struct {
	Title, Table string
	Charts       []chart
}

// WriteHTML writes the report as one page without outside parts: the table, the
// time line, and the distributions of latency and lag.
func (s *Summary) WriteHTML(path string) error {
	return writePage(path, "Holdfast benchmark: "+s.Scenario, s.StartedAt, "", []section{s.section(s.Scenario)})
}

// WriteHTML writes the suite as one page, a section for each row.
func (s *SuiteResult) WriteHTML(path string) error {
	var table strings.Builder
	s.Table(&table)
	var all []section
	at := ""
	for _, r := range s.Rows {
		if at == "" {
			at = r.StartedAt
		}
		all = append(all, r.section(r.Name))
	}
	return writePage(path, "Holdfast benchmark: suite "+s.Suite, at, table.String(), all)
}

func (s *Summary) section(title string) section {
	var table strings.Builder
	s.Table(&table)
	var answered, executed, p99, lag []point
	for _, one := range s.Line {
		x := float64(one.At)
		answered, executed = append(answered, point{x, float64(one.Answered)}), append(executed, point{x, float64(one.Executed)})
		p99, lag = append(p99, point{x, one.P99}), append(lag, point{x, one.LagP99})
	}
	return section{Title: title, Table: table.String(), Charts: []chart{
		lines("Each second: answered and executed holds", "s", "", curve{"answered", answered}, curve{"executed", executed}),
		lines("Each second: p99 of the answers and of the execution lag", "s", "ms", curve{"answers", p99}, curve{"lag", lag}),
		bars("Latency of creates", s.create),
		bars("Latency of cancels", s.cancel),
		bars("Execution lag", s.lags),
	}}
}

func writePage(path, title, at, table string, sections []section) error {
	f, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	if err := page.Execute(f, map[string]any{"Title": title, "At": at, "Table": table, "Sections": sections}); err != nil {
		f.Close()
		return fmt.Errorf("write the report: %w", err)
	}
	return f.Close()
}

// The second colour of a chart must differ from the first in lightness too, for
// those who do not see hues; both keep their contrast on dark and on light.
var page = template.Must(template.New("report").Parse(`<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width"><meta name="color-scheme" content="light dark">
<title>{{.Title}}</title>
<style>
:root{--ink:#222;--paper:#fff;--box:#f4f4f4;--grid:#ddd;--one:#0b6b57;--two:#d9822b}
@media (prefers-color-scheme:dark){:root{--ink:#ddd;--paper:#181818;--box:#242424;--grid:#3a3a3a;--one:#4fd1b5;--two:#f0a35e}}
body{font:15px system-ui,sans-serif;max-width:64rem;margin:2rem auto;padding:0 1rem;color:var(--ink);background:var(--paper)}
pre{background:var(--box);padding:1rem;overflow-x:auto;font-size:13px}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(26rem,1fr));gap:1rem}
figure{margin:0}figcaption{font-weight:600}svg{width:100%;height:auto;font-size:12px}
svg text{fill:var(--ink)}.grid{stroke:var(--grid)}
.c0{stroke:var(--one);fill:none;stroke-width:2}.c1{stroke:var(--two);fill:none;stroke-width:2;stroke-dasharray:5 3}
.b{fill:var(--one)}.q{stroke:var(--two);stroke-width:1.5;stroke-dasharray:4 3}svg .k0{fill:var(--one)}svg .k1{fill:var(--two)}
</style>
<h1>{{.Title}}</h1><p>Started at {{.At}}.</p>{{with .Table}}<pre>{{.}}</pre>{{end}}
{{range .Sections}}<h2>{{.Title}}</h2><pre>{{.Table}}</pre><div class="charts">
{{range .Charts}}{{if .Body}}<figure><figcaption>{{.Title}}</figcaption>
<svg viewBox="0 0 620 240" role="img" aria-label="{{.Title}}">{{.Body}}</svg></figure>
{{end}}{{end}}</div>{{end}}</html>
`))

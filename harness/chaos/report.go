package chaos

import (
	"encoding/json"
	"fmt"
	"html/template"
	"io"
	"os"
	"time"
)

// WriteJSON writes the report as one indented object.
func (r *Report) WriteJSON(path string) error {
	return writeFile(path, func(w io.Writer) error {
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		return enc.Encode(r)
	})
}

// WriteHTML writes the report as one page without outside parts.
func (r *Report) WriteHTML(path string) error {
	return writeFile(path, func(w io.Writer) error { return page.Execute(w, newView(r)) })
}

func writeFile(path string, write func(io.Writer) error) error {
	f, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	if err := write(f); err != nil {
		f.Close()
		return fmt.Errorf("write the report: %w", err)
	}
	return f.Close()
}

// view is the report in the shape of the page: one row per fault, its seeds
// below it.
type view struct {
	*Report
	Passed, Skipped, FailedRuns int
	Good                        bool
	Took                        string
	Faults                      []faultView
}

type faultView struct {
	Name, Theme, About, Covers string
	Verdict                    string
	Struck                     int
	Ops                        Ops
	Lag, Recover               string
	Seeds                      []seedView
	lag, recover               int64
}

type seedView struct {
	*Result
	Word, Lag, Recover, Took string
	Why                      []string
}

func newView(r *Report) view {
	v := view{Report: r, Good: r.OK(), Took: ms(r.TookMS)}
	v.Passed, v.Skipped, v.FailedRuns = r.Count()
	at := map[string]int{}
	for i := range r.Results {
		x := &r.Results[i]
		j, seen := at[x.Fault]
		if !seen {
			j = len(v.Faults)
			at[x.Fault] = j
			v.Faults = append(v.Faults, faultView{Name: x.Fault, Theme: x.Theme, About: x.About, Covers: x.Covers, Verdict: "ok"})
		}
		f := &v.Faults[j]
		f.add(x)
	}
	return v
}

func (f *faultView) add(x *Result) {
	f.Struck += x.Struck
	f.Ops.OK += x.Ops.OK
	f.Ops.Refused += x.Ops.Refused
	f.Ops.Unknown += x.Ops.Unknown
	f.lag, f.recover = max(f.lag, x.WorstLagMS), max(f.recover, x.RecoverMS)
	f.Lag, f.Recover = ms(f.lag), ms(f.recover)
	if word := x.Verdict(); word != "ok" {
		f.Verdict = word
	}
	s := seedView{Result: x, Word: x.Verdict(), Lag: ms(x.WorstLagMS), Recover: ms(x.RecoverMS), Took: ms(x.TookMS)}
	if !x.Passed() {
		s.Why = x.Reasons()
	}
	f.Seeds = append(f.Seeds, s)
}

// Date is when the run began, for people.
func (v view) Date() string { return v.Began.UTC().Format(time.DateTime + " UTC") }

var page = template.Must(template.New("report").Parse(`<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1"><title>Holdfast: failure injection</title>
<style>:root{color-scheme:light dark}body{font:15px/1.45 system-ui,sans-serif;max-width:75rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}
table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.35rem .6rem;border-bottom:1px solid #ddd;vertical-align:top}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}small{color:#666}code{font-size:13px;overflow-wrap:anywhere}
.ok{color:#17692f}.bad{color:#b3261e;font-weight:600}.skip{color:#8a5a00;font-weight:600}details{margin:.2rem 0}
ul{margin:.2rem 0;padding-left:1.2rem}.wide{overflow-x:auto}
@media (prefers-color-scheme:dark){body{color:#ddd;background:#161616}th,td{border-color:#3a3a3a}small{color:#999}.ok{color:#6fcf87}.bad{color:#ff8a80}.skip{color:#f2b94b}}</style>
<h1>Failure injection</h1>
<p class="{{if .Good}}ok{{else}}bad{{end}}">{{.Passed}} runs passed, {{.Skipped}} were skipped, {{.FailedRuns}} failed, in {{.Took}}.</p>
<p>Begun {{.Date}}, {{.Version}}, {{.Machine}}. Command: <code>{{.Command}}</code></p>
{{with .NotTried}}<p class="skip">Not tried, the time was over: {{range $i, $n := .}}{{if $i}}, {{end}}{{$n}}{{end}}.</p>{{end}}
<p>A run passes when its fault struck, every invariant held in each cut under load and at rest, and nothing was overdue soon enough after the heal. Operations are those of the clients: refused is a definite no, unknown was not answered. Lag is executed_at − unlock_at of the worst hold, most of it the fault itself.</p>
<div class="wide"><table><thead><tr><th>Fault</th><th class="n">struck</th><th class="n">ok</th><th class="n">refused</th><th class="n">unknown</th><th class="n">worst lag</th><th class="n">recovered in</th><th>verdict</th></tr></thead><tbody>
{{range .Faults}}<tr><td><strong>{{.Name}}</strong> <small>{{.Theme}} · {{.Covers}}</small><br>{{.About}}
<details><summary>{{len .Seeds}} {{if eq (len .Seeds) 1}}run{{else}}runs{{end}}</summary>
{{range .Seeds}}<div>seed {{.Seed}}: <span class="{{if eq .Word "ok"}}ok{{else if eq .Word "SKIPPED"}}skip{{else}}bad{{end}}">{{.Word}}</span>, struck {{.Struck}}, {{.Holds}} holds, {{.Cuts}} cuts, lag {{.Lag}}, recovered in {{.Recover}}, took {{.Took}}
<br><code>{{.Replay}}</code>{{if .Kept}}<br>kept: <code>{{.Kept}}</code>{{end}}
{{if or .Why .Notes}}<ul>{{range .Why}}<li class="bad">{{.}}</li>{{end}}{{range .Notes}}<li>{{.}}</li>{{end}}</ul>{{end}}</div>{{end}}</details></td>
<td class="n">{{.Struck}}</td><td class="n">{{.Ops.OK}}</td><td class="n">{{.Ops.Refused}}</td><td class="n">{{.Ops.Unknown}}</td><td class="n">{{.Lag}}</td><td class="n">{{.Recover}}</td>
<td class="{{if eq .Verdict "ok"}}ok{{else if eq .Verdict "SKIPPED"}}skip{{else}}bad{{end}}">{{.Verdict}}</td></tr>
{{end}}</tbody></table></div></html>
`))

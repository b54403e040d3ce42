package bench

import (
	"fmt"
	"html/template"
	"math"
	"strings"
)

// chart is a drawing of 620 by 240 units; an empty body is left out.
type chart struct {
	Title string
	Body  template.HTML
}

type point struct{ x, y float64 }

type curve struct {
	name   string
	points []point
}

// The frame of a drawing in its own units.
const left, top, width, height = 64.0, 24.0, 540.0, 180.0

// frame draws the grid, with labels from bottom to top and from left to right.
func frame(b *strings.Builder, ys, xs []string) {
	for i, label := range ys {
		y := top + height - float64(i)/float64(len(ys)-1)*height
		fmt.Fprintf(b, `<line class="grid" x1="%g" x2="%g" y1="%.1f" y2="%.1f"/><text x="%g" y="%.1f" text-anchor="end">%s</text>`,
			left, left+width, y, y, left-6, y+4, label)
	}
	for i, label := range xs {
		x := left + float64(i)/float64(len(xs)-1)*width
		fmt.Fprintf(b, `<text x="%.1f" y="%g" text-anchor="middle">%s</text>`, x, top+height+18, label)
	}
}

// lines draws curves over the same time.
func lines(title, xUnit, yUnit string, curves ...curve) chart {
	c := chart{Title: title}
	most, from, to := 0.0, math.Inf(1), math.Inf(-1)
	for _, k := range curves {
		for _, p := range k.points {
			most, from, to = max(most, p.y), min(from, p.x), max(to, p.x)
		}
	}
	if most == 0 || to <= from {
		return c
	}
	var b strings.Builder
	frame(&b, []string{"0", label(most/2, yUnit), label(most, yUnit)},
		[]string{label(from, xUnit), label((from+to)/2, xUnit), label(to, xUnit)})
	for i, k := range curves {
		fmt.Fprintf(&b, `<polyline class="c%d" points="`, i)
		for _, p := range k.points {
			fmt.Fprintf(&b, "%.1f,%.1f ", left+(p.x-from)/(to-from)*width, top+height-p.y/most*height)
		}
		fmt.Fprintf(&b, `"/><text class="k%d" x="%g" y="14">%s</text>`, i, left+float64(i)*110, k.name)
	}
	c.Body = template.HTML(b.String())
	return c
}

// label is a number without zeros at its end, with its unit.
func label(x float64, unit string) string {
	text := short(x)
	if strings.Contains(text, ".") {
		text = strings.TrimSuffix(strings.TrimRight(text, "0"), ".")
	}
	return strings.TrimSpace(text + " " + unit)
}

// perDecade is how many bars a histogram has for each power of ten.
const perDecade = 10

// bars draws a histogram on a logarithmic scale of time, with its median and
// 99th percentile.
func bars(title string, h *histogram) chart {
	c := chart{Title: title}
	if h == nil || h.TotalCount() == 0 {
		return c
	}
	slot := func(us int64) int { return int(math.Floor(math.Log10(float64(max(1, us))) * perDecade)) }
	counts, first, last, most := map[int]int64{}, math.MaxInt, math.MinInt, int64(0)
	for _, bar := range h.Distribution() {
		if bar.Count > 0 {
			s := slot(bar.From)
			counts[s] += bar.Count
			first, last, most = min(first, s), max(last, s), max(most, counts[s])
		}
	}
	// Whole decades, so that the labels below are round.
	first, last = first/perDecade*perDecade, (last/perDecade+1)*perDecade
	var b strings.Builder
	var decades []string
	for d := first / perDecade; d <= last/perDecade; d++ {
		decades = append(decades, label(math.Pow(10, float64(d))/1000, "ms"))
	}
	share := 100 * float64(most) / float64(h.TotalCount())
	frame(&b, []string{"0", label(share/2, "%"), label(share, "%")}, decades)
	wide := width / float64(last-first)
	for s := first; s < last; s++ {
		if n := counts[s]; n > 0 {
			tall := float64(n) / float64(most) * height
			fmt.Fprintf(&b, `<rect class="b" x="%.1f" y="%.1f" width="%.1f" height="%.1f"/>`,
				left+float64(s-first)*wide+0.5, top+height-tall, wide-1, tall)
		}
	}
	for i, q := range []float64{50, 99} {
		x := left + (math.Log10(float64(max(1, h.ValueAtQuantile(q))))*perDecade-float64(first))*wide
		fmt.Fprintf(&b, `<line class="q" x1="%.1f" x2="%.1f" y1="%g" y2="%g"/>`, x, x, top, top+height)
		fmt.Fprintf(&b, `<text x="%g" y="14">p%g %s ms</text>`, left+float64(i)*160, q, short(h.ms(q)))
	}
	c.Body = template.HTML(b.String())
	return c
}

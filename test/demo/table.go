package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/pghardend/pghardend/test/reach"
)

// table shows what got through from each host, in rows, to each other, in columns. A cell has a line for each probe, since
// the columns of nine hosts have to fit on a screen. Pure.
func table(hosts []string, got map[reach.Cell]reach.Outcome) string {
	grid := make([][][]string, len(hosts)) // row, column, lines
	widths := make([]int, len(hosts))
	for i, from := range hosts {
		grid[i] = make([][]string, len(hosts))
		for j, to := range hosts {
			grid[i][j] = cell(reach.Pair{From: from, To: to}, got)
			for _, text := range append([]string{to}, grid[i][j]...) {
				widths[j] = max(widths[j], len([]rune(text)))
			}
		}
	}
	var s strings.Builder
	line := func(title string, column func(int) string) {
		text := fmt.Sprintf("%-10s", title)
		for j := range hosts {
			text += fmt.Sprintf(" %-*s", widths[j], column(j)) // counts runes
		}
		s.WriteString(strings.TrimRight(text, " ") + "\n")
	}
	line("from \\ to", func(j int) string { return hosts[j] })
	for i, from := range hosts {
		height := 1
		for _, lines := range grid[i] {
			height = max(height, len(lines))
		}
		for n := range height {
			title := ""
			if n == 0 {
				title = from
			}
			line(title, func(j int) string {
				if n < len(grid[i][j]) {
					return grid[i][j][n]
				}
				return ""
			})
		}
	}
	return s.String()
}

// cell lists what got through between two hosts. What did over one family alone says over which; what got in without an
// answer has a question mark.
func cell(pair reach.Pair, got map[reach.Cell]reach.Outcome) []string {
	if pair.From == pair.To {
		return []string{""}
	}
	var lines []string
	all := true
	for _, p := range reach.Probes {
		v4, v6 := got[reach.Cell{Pair: pair, Probe: p}], got[reach.Cell{Pair: pair, Probe: p, V6: true}]
		all = all && v4 == reach.Through && v6 == reach.Through
		text := name(p)
		switch {
		case v4 == reach.Blocked && v6 == reach.Blocked:
			continue
		case v6 == reach.Blocked:
			text += "/4"
		case v4 == reach.Blocked:
			text += "/6"
		}
		if slices.Contains([]reach.Outcome{v4, v6}, reach.OneWay) {
			text += "?"
		}
		lines = append(lines, text)
	}
	switch {
	case all:
		return []string{"all"}
	case lines == nil:
		return []string{"·"}
	}
	return lines
}

func name(p reach.Probe) string {
	switch p.Proto {
	case reach.TCP:
		return fmt.Sprint(p.Port)
	case reach.UDP:
		return fmt.Sprintf("u%d", p.Port)
	}
	return p.Proto
}

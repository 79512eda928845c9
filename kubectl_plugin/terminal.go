// What is printed for people: colours, tables, durations.
package main

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"time"

	"golang.org/x/term"
)

const (
	bold   = "\x1b[1m"
	dim    = "\x1b[2m"
	red    = "\x1b[31m"
	green  = "\x1b[32m"
	yellow = "\x1b[33m"
	plain  = "\x1b[0m"
)

func isTerminal(file *os.File) bool {
	return term.IsTerminal(int(file.Fd()))
}

// hasColour follows https://no-color.org; a console of Windows may show the codes themselves.
func hasColour(file *os.File) bool {
	return os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" && runtime.GOOS != "windows" && isTerminal(file)
}

// screen is where one command writes.
type screen struct {
	io.Writer

	isColoured bool
}

func screenOn(file *os.File) screen {
	return screen{file, hasColour(file)}
}

func (s screen) paint(colour, text string) string {
	if !s.isColoured || colour == "" || text == "" {
		return text
	}
	return colour + text + plain
}

func (s screen) phase(phase, text string) string {
	switch phase {
	case succeeded:
		return s.paint(green, text)
	case failed:
		return s.paint(red, text)
	case cancelled, cancelling, awaitingApproval:
		return s.paint(yellow, text)
	}
	return s.paint(bold, text)
}

func (s screen) line(format string, values ...any) {
	fmt.Fprintf(s, format+"\n", values...)
}

// table aligns its columns; cells of the column `phases` (-1: none) have the colour of their phase.
func (s screen) table(head []string, rows [][]string, phases int) {
	widths := make([]int, len(head))
	for _, row := range append([][]string{head}, rows...) {
		for i, cell := range row {
			widths[i] = max(widths[i], len([]rune(cell)))
		}
	}
	for number, row := range append([][]string{head}, rows...) {
		var line strings.Builder
		for i, cell := range row {
			shown := cell
			if i == phases && number > 0 {
				shown = s.phase(cell, cell)
			}
			line.WriteString(shown)
			if i < len(row)-1 {
				line.WriteString(strings.Repeat(" ", widths[i]-len([]rune(cell))+3))
			}
		}
		fmt.Fprintln(s, strings.TrimRight(line.String(), " "))
	}
}

// seconds is a duration as the timelines have it.
func seconds(d time.Duration) string {
	switch {
	case d < 100*time.Second:
		return fmt.Sprintf("%.2f s", d.Seconds())
	case d < 100*time.Minute:
		return fmt.Sprintf("%d min %02d s", int(d.Minutes()), int(d.Seconds())%60)
	}
	return fmt.Sprintf("%d h %02d min", int(d.Hours()), int(d.Minutes())%60)
}

// age is a duration as kubectl's tables have it.
func age(since time.Time) string {
	if since.IsZero() {
		return ""
	}
	switch d := max(time.Since(since), 0); {
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	default:
		return fmt.Sprintf("%dd", int(d.Hours())/24)
	}
}

package firewall

import "strings"

// maxQuoted bounds the search for a closing quote: iptables-restore takes no
// longer line, so iptables-save writes no longer word.
const maxQuoted = 10240

// scanWords splits the first line of text into words and returns the length of
// that line without its newline. It reads the format of iptables-save and ipset
// save, which is not a shell's: only a quote at the start of a word opens a
// quoted word, in which newlines are text; everywhere else a quote, a '#' or a
// backslash stands for itself, since names of sets and chains are printed raw.
//
// With escapes a backslash inside quotes takes the next byte literally, as
// iptables-save writes it; ipset save has no escapes.
func scanWords(text string, escapes bool) (words []string, n int) {
	for n < len(text) && text[n] != '\n' {
		if text[n] == ' ' {
			n++
			continue
		}
		if word, size, ok := scanQuoted(text[n:], escapes); ok {
			words, n = append(words, word), n+size
			continue
		}
		size := strings.IndexAny(text[n:], " \n")
		if size < 0 {
			size = len(text) - n
		}
		words, n = append(words, text[n:n+size]), n+size
	}
	return words, n
}

// scanQuoted reads a quoted word at the start of text. False: there is none, for
// example since the quote is the first letter of a set's name.
func scanQuoted(text string, escapes bool) (word string, n int, ok bool) {
	if text[0] != '"' {
		return "", 0, false
	}
	var b strings.Builder
	for i := 1; i < min(len(text), maxQuoted); i++ {
		switch c := text[i]; {
		case escapes && c == '\\' && i+1 < len(text):
			i++
			b.WriteByte(text[i])
		case c == '"':
			end := i + 1
			return b.String(), end, end == len(text) || text[end] == ' ' || text[end] == '\n'
		default:
			b.WriteByte(c)
		}
	}
	return "", 0, false
}

// quoteWords writes words as iptables-restore reads them.
func quoteWords(words []string) string {
	quoted := make([]string, len(words))
	for i, w := range words {
		quoted[i] = quote(w)
	}
	return strings.Join(quoted, " ")
}

func quote(word string) string {
	if word != "" && !strings.ContainsFunc(word, needsQuote) {
		return word
	}
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(word) + `"`
}

func needsQuote(r rune) bool {
	return r <= ' ' || strings.ContainsRune(`"'\#$&();<>|*?[]{}~`+"`", r)
}

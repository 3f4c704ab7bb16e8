// Package journal keeps what happened: a bounded list of records on disk that
// survives restarts, crashes and a full disk.
//
// # API
//
// Open takes up what an earlier daemon left, Run writes, Append adds a record,
// Since lists, Subscribe follows and Err says why records are not on disk. Read
// is for who has no daemon to ask.
//
// # Design
//
// A record is a line of JSON of at most 8 KiB in events.jsonl. At 1 MiB the file
// becomes events.1.jsonl, in place of the one before, so both take 2 MiB at most.
// The file's space is reserved when it is made, unless there is little: a disk that
// fills up later still takes what fits into it. fdatasync(2) follows a second after
// a write, and nothing wakes the writer where nothing is written. No file stays
// open, so that the file system can be made read-only.
//
// Append only puts the record into memory. Run's goroutine writes it; as long as
// it cannot, the last 256 wait, and the first that gets to disk says how many did
// not. It is tried again with a growing delay, up to five seconds.
//
// A crash may leave half a line. The next daemon ends that line, and readers skip
// what is no record. The order is that of the sequence numbers, which go on from
// where the last daemon was; the clock may have been set.
//
// # Thread safety
//
// Run may be called once; all else from any goroutine. Append never waits for a
// disk or a reader, so a subscriber that falls behind loses its subscription.
package journal

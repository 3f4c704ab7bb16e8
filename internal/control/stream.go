package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// What ends a stream of events that its reader has not ended.
const (
	endDaemon = "the daemon ends"
	endBehind = "the reader has fallen behind"
)

// streamEnd is the last line of a stream that was to go on.
type streamEnd struct {
	End string `json:"end,omitempty"`
}

// EventsRequest says which events are wanted.
type EventsRequest struct {
	After  uint64 // only those with a greater Seq
	Limit  int    // only so many, the last ones; 0: all that are known
	Follow bool   // and all that come
}

func events(b Backend, w http.ResponseWriter, r *http.Request) {
	request, err := eventsRequest(r.URL.Query())
	if err != nil {
		answer(w, nil, err)
		return
	}
	if request.Follow {
		follow(b, w, r, request)
		return
	}
	list, err := b.Events(r.Context(), request.After, request.Limit)
	if err != nil {
		answer(w, nil, err)
		return
	}
	s := newStream(w)
	for _, e := range list {
		if !s.send(e) {
			return
		}
	}
	s.flush()
}

// follow sends events until the client, the daemon or its patience has ended.
func follow(b Backend, w http.ResponseWriter, r *http.Request, request EventsRequest) {
	// The subscription ends with this function, whatever becomes of the request.
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	ch, err := b.Follow(ctx, request.After, request.Limit)
	if err != nil {
		answer(w, nil, err)
		return
	}
	s := newStream(w)
	for {
		s.flush()
		e, ok := <-ch
		if !ok {
			break
		}
		if !s.send(e) {
			return
		}
	}
	end := endBehind
	if r.Context().Err() != nil {
		end = endDaemon
	}
	s.send(streamEnd{End: end})
	s.flush()
}

func eventsRequest(query url.Values) (EventsRequest, error) {
	var request EventsRequest
	for key := range query {
		var err error
		switch value := query.Get(key); key {
		case "after":
			request.After, err = strconv.ParseUint(value, 10, 64)
		case "limit":
			var n uint64
			n, err = strconv.ParseUint(value, 10, 31)
			request.Limit = int(n)
		case "follow":
			request.Follow, err = strconv.ParseBool(value)
		default:
			err = errors.New("unknown key; use after, limit and follow")
		}
		if err != nil {
			return EventsRequest{}, fmt.Errorf("%w: %s: %w", ErrRefused, key, err)
		}
	}
	return request, nil
}

func (r EventsRequest) query() string {
	return url.Values{
		"after":  {strconv.FormatUint(r.After, 10)},
		"limit":  {strconv.Itoa(r.Limit)},
		"follow": {strconv.FormatBool(r.Follow)},
	}.Encode()
}

// stream writes lines of JSON. Each line has its own deadline, so that a client
// which does not read loses its connection and nobody waits for it.
type stream struct {
	w       http.ResponseWriter
	control *http.ResponseController
}

func newStream(w http.ResponseWriter) stream {
	w.Header().Set("Content-Type", "application/x-ndjson")
	return stream{w: w, control: http.NewResponseController(w)}
}

// send says whether the client is still there.
func (s stream) send(v any) bool {
	line, err := json.Marshal(v)
	if err != nil {
		return false
	}
	_ = s.control.SetWriteDeadline(time.Now().Add(writeTimeout))
	_, err = s.w.Write(append(line, '\n'))
	return err == nil
}

// flush fails where the next send does.
func (s stream) flush() {
	_ = s.control.SetWriteDeadline(time.Now().Add(writeTimeout))
	_ = s.control.Flush()
}

// Events calls each with the events that r asks for, oldest first. With r.Follow
// it returns when ctx is done, each fails or the daemon ends the stream.
func (c *Client) Events(ctx context.Context, r EventsRequest, each func(Event) error) error {
	if !r.Follow {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.statusPatience)
		defer cancel()
	}
	answer, err := c.ask(ctx, http.MethodGet, "/v1/events?"+r.query(), nil)
	if err != nil {
		return err
	}
	defer answer.Close()
	dec := json.NewDecoder(answer)
	for {
		var line struct {
			streamEnd
			Event
		}
		err := dec.Decode(&line)
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return c.unreadable(err)
		case line.End != "":
			return fmt.Errorf("the daemon on %s has ended the list: %s", c.path, line.End)
		}
		if err := each(line.Event); err != nil {
			return err
		}
	}
}

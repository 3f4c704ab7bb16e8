package control

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"time"
)

// maxBody is far above what a request needs, in bytes.
const maxBody = 64 << 10

func routes(b Backend) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, r *http.Request) {
		answer(w, b.Status(r.Context()), nil)
	})
	mux.HandleFunc("POST /v1/apply", func(w http.ResponseWriter, r *http.Request) {
		request, err := applyRequest(r)
		if err != nil {
			answer(w, nil, err)
			return
		}
		status, err := b.Apply(r.Context(), request)
		answer(w, status, err)
	})
	mux.HandleFunc("POST /v1/confirm", func(w http.ResponseWriter, r *http.Request) {
		status, err := b.Confirm(r.Context(), peerOf(r.Context()))
		answer(w, status, err)
	})
	mux.HandleFunc("GET /v1/openings", func(w http.ResponseWriter, r *http.Request) {
		answer(w, append([]Opening{}, b.Openings(r.Context())...), nil)
	})
	mux.HandleFunc("POST /v1/openings", func(w http.ResponseWriter, r *http.Request) {
		request, err := openRequest(w, r)
		if err != nil {
			answer(w, nil, err)
			return
		}
		opening, err := b.Open(r.Context(), request)
		answer(w, opening, err)
	})
	mux.HandleFunc("DELETE /v1/openings/{id}", func(w http.ResponseWriter, r *http.Request) {
		opening, err := b.Close(r.Context(), r.PathValue("id"), peerOf(r.Context()))
		answer(w, opening, err)
	})
	mux.HandleFunc("GET /v1/events", func(w http.ResponseWriter, r *http.Request) { events(b, w, r) })
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, r *http.Request) {
		b.Metrics().ServeHTTP(w, r)
	})
	mux.HandleFunc("POST /v1/services/{name}/start", func(w http.ResponseWriter, r *http.Request) {
		answer(w, struct{}{}, b.StartService(r.Context(), r.PathValue("name")))
	})
	mux.HandleFunc("POST /v1/services/{name}/stop", func(w http.ResponseWriter, r *http.Request) {
		answer(w, struct{}{}, b.StopService(r.Context(), r.PathValue("name")))
	})
	return mux
}

// applyRequest reads the query. A time that cannot be read is refused: who asked
// for a change that goes back must not get one that stays.
func applyRequest(r *http.Request) (ApplyRequest, error) {
	query := r.URL.Query()
	var request ApplyRequest
	for key := range query {
		var err error
		switch value := query.Get(key); key {
		case "force":
			request.Force, err = strconv.ParseBool(value)
		case "confirm_within":
			request.ConfirmWithin, err = time.ParseDuration(value)
		default:
			err = fmt.Errorf("unknown key; use force and confirm_within")
		}
		if err != nil {
			return ApplyRequest{}, fmt.Errorf("%w: %s: %w", ErrRefused, key, err)
		}
	}
	return request, nil
}

func openRequest(w http.ResponseWriter, r *http.Request) (OpenRequest, error) {
	// A body that never ends, or never comes, holds up its own connection only.
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(headerTimeout))
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
	dec.DisallowUnknownFields()
	var body openBody
	if err := dec.Decode(&body); err != nil {
		return OpenRequest{}, fmt.Errorf("%w: the request cannot be read: %w", ErrRefused, err)
	}
	d, err := time.ParseDuration(body.For)
	if err != nil {
		return OpenRequest{}, fmt.Errorf("%w: for: %w", ErrRefused, err)
	}
	return OpenRequest{
		From: body.From, Proto: body.Proto, Port: body.Port, For: d, Reason: body.Reason, By: peerOf(r.Context()),
	}, nil
}

package drill

import "slices"

// The results of an attempt.
const (
	Stopped    = "stopped"
	NotStopped = "NOT STOPPED"
	// Open is an attempt that nothing stopped, that only SELinux can, and that is known for it: see
	// needSELinux. Any other that is not stopped is NotStopped, and makes the report not OK.
	Open          = "open"
	NotApplicable = "not applicable"
)

// Report is what a drill found.
type Report struct {
	OK       bool      `json:"ok"`   // nothing is NotStopped
	Open     []string  `json:"open"` // ROW/NAME of those that are Open: OK all the same
	Service  string    `json:"service"`
	Layers   []LayerOn `json:"layers"`
	Attempts []Result  `json:"attempts"`
	Ablated  bool      `json:"ablated"`
	Notes    []string  `json:"notes,omitempty"` // how the drill differs from the service
}

// LayerOn says whether the service has a layer, and if not, why.
type LayerOn struct {
	Layer Layer  `json:"layer"`
	On    bool   `json:"on"`
	Why   string `json:"why,omitempty"`
}

// Result is what became of one attempt.
type Result struct {
	Row      string  `json:"row"`
	Name     string  `json:"name"`
	Does     string  `json:"does"`
	Result   string  `json:"result"`
	Layer    Layer   `json:"layer,omitempty"`    // which stopped it
	Evidence string  `json:"evidence,omitempty"` // what was seen, in the whole box or, if not applicable, in the control
	Control  string  `json:"control"`            // what the same act did without the layers
	Alone    []Layer `json:"alone"`              // layers that stop it alone: with Ablated all of them, else those that were tried
	Single   string  `json:"single,omitempty"`   // with Ablate: why one layer alone stops it
	Advice   string  `json:"advice,omitempty"`
}

// needSELinux are the attempts that nothing but SELinux can stop, docs/drill.md. A host without it is not at
// fault for them; a new one comes here by a decision, and not because it happens to succeed.
var needSELinux = []string{"A52/public-socket"}

// trial has the outcomes of an attempt, by box.
type trial struct {
	attempt attempt
	control outcome
	whole   outcome
	alone   map[Layer]outcome
}

// settled says whether it is known which layer stopped the attempt.
func (t trial) settled() bool {
	return !t.control.Reached || t.whole.Reached || t.whole.Absent != "" || t.match() != ""
}

// match is the first layer that alone ended it as the whole did.
func (t trial) match() Layer {
	for _, l := range askedIn {
		if o, ok := t.alone[l]; ok && counts(l, o) && o.same(t.whole) {
			return l
		}
	}
	return ""
}

// stoppers are the layers that stopped it alone.
func (t trial) stoppers() []Layer {
	list := []Layer{}
	for _, l := range askedIn {
		if o, ok := t.alone[l]; ok && counts(l, o) {
			list = append(list, l)
		}
	}
	return list
}

// result decides. on are the layers that the service has. Pure.
func (t trial) result(on []Layer) Result {
	a := t.attempt
	r := Result{Row: a.row, Name: a.name, Does: a.does, Control: t.control.text(), Alone: t.stoppers(), Single: a.single, Evidence: t.whole.text()}
	switch {
	case !t.control.Reached:
		r.Result, r.Evidence = NotApplicable, "without the layers: "+t.control.text()
	case t.whole.Absent != "":
		r.Result = NotApplicable
	case t.whole.Reached:
		r.Result, r.Advice = NotStopped, a.fix
		if slices.Contains(needSELinux, a.id()) && !slices.Contains(on, SELinux) {
			r.Result, r.Advice = Open, "needs selinux, which a drill does not put in force"
		}
	default:
		r.Result, r.Layer = Stopped, t.match()
		if r.Layer == "" && len(r.Alone) > 0 {
			r.Layer = r.Alone[0]
		}
		if r.Layer == "" {
			r.Evidence += "; by no layer alone"
		}
	}
	return r
}

// finish fills in what follows from the results.
func (r *Report) finish() {
	r.Open = []string{}
	for i, a := range r.Attempts {
		if !r.Ablated || a.Result != Stopped || len(a.Alone) > 1 {
			r.Attempts[i].Single = ""
		}
		if a.Result == Open {
			r.Open = append(r.Open, a.Row+"/"+a.Name)
		}
	}
	r.OK = !slices.ContainsFunc(r.Attempts, func(x Result) bool { return x.Result == NotStopped })
}

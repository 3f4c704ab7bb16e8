package agent

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"strings"

	"github.com/pghardend/pghardend/internal/launch"
	"github.com/pghardend/pghardend/pkg/config"
	"github.com/pghardend/pghardend/pkg/sandbox"
)

// ProfileReport is a seccomp profile as `profile show` prints it.
type ProfileReport struct {
	Profile      string          `json:"profile"`
	Service      string          `json:"service,omitempty"`
	Arch         string          `json:"arch"`
	Features     []launch.Chosen `json:"features"`
	Wanted       []launch.Chosen `json:"wanted,omitempty"` // asked for by the server's settings, not allowed by the configuration
	Others       []FeatureInfo   `json:"others"`           // features that were not chosen
	Fault        string          `json:"fault,omitempty"`  // why the settings are not known
	Note         string          `json:"note,omitempty"`   // what else counts where its own unit starts it
	Default      string          `json:"default"`          // what calls get that are in no entry
	Allowed      []string        `json:"allowed"`          // calls that are let through with some arguments at least
	Instructions int             `json:"instructions"`
	Entries      []sandbox.Entry `json:"entries"`
}

// FeatureInfo is a feature that a profile can have.
type FeatureInfo struct {
	Feature     string `json:"feature"`
	Description string `json:"description"`
	OptIn       bool   `json:"opt_in"`
}

// ShowService is the profile with which a service would be started now.
func ShowService(ctx context.Context, configFile, service string) (ProfileReport, error) {
	cfg, err := LoadConfig(ctx, configFile)
	if err != nil {
		return ProfileReport{}, err
	}
	i := slices.IndexFunc(cfg.Services, func(s config.Service) bool { return s.Name == service })
	if i < 0 {
		return ProfileReport{}, fmt.Errorf("%s: there is no service %q; services: %s", cfg.Where("services"), service, serviceNames(cfg))
	}
	facts := readServerFacts(ctx, cfg.Services[i])
	p, err := serviceProfile(cfg, cfg.Services[i], facts)
	if err != nil {
		return ProfileReport{}, err
	}
	chosen, wanted := chooseFeatures(cfg, cfg.Services[i], facts)
	r, err := reportProfile(p, chosen)
	r.Service, r.Wanted = service, wanted
	if cfg.Services[i].External && p.ExecBelow() > 0 {
		r.Note = "where its unit starts it without privileges, with " + featureOpenExec + ": " + noGate
	}
	if facts.fault != nil {
		r.Fault = fmt.Sprintf("cannot read the server's settings, so they chose nothing: %v", facts.fault)
	}
	return r, err
}

// ShowProfile is a profile with the features that were asked for.
func ShowProfile(profile string, features []string) (ProfileReport, error) {
	p, err := composeProfile(profile, features)
	if err != nil {
		return ProfileReport{}, err
	}
	var chosen []launch.Chosen
	for _, f := range features {
		chosen = append(chosen, launch.Chosen{Feature: f, Because: "asked for"})
	}
	return reportProfile(p, chosen)
}

func reportProfile(p sandbox.Profile, chosen []launch.Chosen) (ProfileReport, error) {
	r := ProfileReport{
		Profile: p.Name(), Arch: runtime.GOARCH, Default: p.Default(), Entries: p.Entries(),
		Features: slices.Concat([]launch.Chosen{}, chosen), Others: []FeatureInfo{},
	}
	known, err := featuresFor(p.Name())
	if err != nil {
		return r, err
	}
	for _, f := range known {
		if !slices.Contains(p.Features(), f.Name()) {
			r.Others = append(r.Others, FeatureInfo{f.Name(), f.Description(), f.OptIn()})
		}
	}
	if r.Allowed, err = p.Allowed(r.Arch); err != nil {
		return r, err
	}
	filter, err := sandbox.Compile(p)
	if err != nil {
		return r, err
	}
	program, err := filter.Instructions()
	r.Instructions = len(program)
	return r, err
}

// ProfileDiff is what changes from one report to another.
type ProfileDiff struct {
	From            string                `json:"from"`
	To              string                `json:"to"`
	AllowedAdded    []string              `json:"allowed_added"`
	AllowedRemoved  []string              `json:"allowed_removed"`
	FeaturesAdded   []string              `json:"features_added"`
	FeaturesRemoved []string              `json:"features_removed"`
	DefaultFrom     string                `json:"default_from,omitempty"` // only if the default differs
	DefaultTo       string                `json:"default_to,omitempty"`
	Entries         []sandbox.EntryChange `json:"entries"`
}

// Empty says whether both let the same calls through with the same arguments.
func (d ProfileDiff) Empty() bool { return len(d.Entries) == 0 && d.DefaultFrom == d.DefaultTo }

// DiffProfiles compares two reports. Reports of different architectures cannot be compared.
func DiffProfiles(from, to ProfileReport) (ProfileDiff, error) {
	if from.Arch != to.Arch {
		return ProfileDiff{}, fmt.Errorf("cannot compare a profile of %s with one of %s", from.Arch, to.Arch)
	}
	d := ProfileDiff{
		From: from.title(), To: to.title(), Entries: slices.Concat([]sandbox.EntryChange{}, sandbox.DiffEntries(from.Entries, to.Entries)),
		AllowedAdded: without(to.Allowed, from.Allowed), AllowedRemoved: without(from.Allowed, to.Allowed),
		FeaturesAdded: without(to.names(), from.names()), FeaturesRemoved: without(from.names(), to.names()),
	}
	if from.Default != to.Default {
		d.DefaultFrom, d.DefaultTo = from.Default, to.Default
	}
	return d, nil
}

func (r ProfileReport) names() []string { return launch.ProfileRecord{Chosen: r.Features}.Names() }

func (r ProfileReport) title() string {
	return strings.Join(append([]string{r.Profile}, r.names()...), " + ")
}

func without(list, other []string) []string {
	return slices.DeleteFunc(slices.Concat([]string{}, list), func(s string) bool { return slices.Contains(other, s) })
}

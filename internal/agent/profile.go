package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"github.com/pghardend/pghardend/internal/launch"
	"github.com/pghardend/pghardend/pkg/config"
	"github.com/pghardend/pghardend/pkg/sandbox"
	"github.com/pghardend/pghardend/policies"
)

// baseProfile reads a built-in profile without features.
func baseProfile(name string) (sandbox.Profile, error) {
	data, err := fs.ReadFile(policies.FS, "seccomp/"+name+".json")
	if err != nil {
		return sandbox.Profile{}, fmt.Errorf("there is no profile %q; profiles: %s", name, strings.Join(embedded("seccomp"), ", "))
	}
	return sandbox.ParseProfile(name, data)
}

func readFeature(name string) (sandbox.Feature, error) {
	data, err := fs.ReadFile(policies.FS, "seccomp/features/"+name+".json")
	if err != nil {
		return sandbox.Feature{}, fmt.Errorf("there is no feature %q", name)
	}
	return sandbox.ParseFeature(name, data)
}

// embedded lists the names of the profiles or features in a folder.
func embedded(folder string) []string {
	files, err := fs.Glob(policies.FS, folder+"/*.json")
	if err != nil {
		return nil
	}
	for i, f := range files {
		files[i] = strings.TrimSuffix(path.Base(f), ".json")
	}
	return files
}

// featuresFor are the features that can be added to a profile.
func featuresFor(profile string) ([]sandbox.Feature, error) {
	var list []sandbox.Feature
	for _, name := range embedded("seccomp/features") {
		f, err := readFeature(name)
		if err != nil {
			return nil, err
		}
		if f.For(profile) {
			list = append(list, f)
		}
	}
	return list, nil
}

// composeProfile is a base with features. A name that is not known is reported with
// those that are.
func composeProfile(name string, features []string) (sandbox.Profile, error) {
	base, err := baseProfile(name)
	if err != nil {
		return sandbox.Profile{}, err
	}
	return addFeatures(base, features)
}

func addFeatures(base sandbox.Profile, features []string) (sandbox.Profile, error) {
	var add []sandbox.Feature
	var errs []error
	for _, name := range features {
		f, err := readFeature(name)
		if err != nil || !f.For(base.Name()) {
			known, other := featuresFor(base.Name())
			errs = append(errs, other, fmt.Errorf("profile %s has no feature %q; features: %s", base.Name(), name, strings.Join(featureNames(known), ", ")))
			continue
		}
		add = append(add, f)
	}
	if err := errors.Join(errs...); err != nil {
		return sandbox.Profile{}, err
	}
	return base.With(add...)
}

func featureNames(list []sandbox.Feature) []string {
	var names []string
	for _, f := range list {
		names = append(names, f.Name())
	}
	return names
}

// serviceProfile is the seccomp profile of a service, with what is known of its
// server.
func serviceProfile(cfg config.Config, svc config.Service, facts serverFacts) (sandbox.Profile, error) {
	key := "services." + svc.Name
	base, err := baseProfile(svc.Profile)
	if err != nil {
		return sandbox.Profile{}, fmt.Errorf("%s: %s.profile: %w", cfg.Where(key+".profile"), key, err)
	}
	chosen, _ := chooseFeatures(cfg, svc, facts)
	p, err := addFeatures(base, launch.ProfileRecord{Chosen: chosen}.Names())
	if err != nil {
		return sandbox.Profile{}, fmt.Errorf("%s: %s.features: %w", cfg.Where(key+".features"), key, err)
	}
	return p, nil
}

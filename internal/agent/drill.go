package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/pghardend/pghardend/internal/drill"
	"github.com/pghardend/pghardend/internal/launch"
	"github.com/pghardend/pghardend/internal/supervise"
	"github.com/pghardend/pghardend/pkg/config"
	"github.com/pghardend/pghardend/pkg/firewall"
	"github.com/pghardend/pghardend/pkg/sandbox"
	"github.com/pghardend/pghardend/policies"
)

// DrillRequest says what to drill.
type DrillRequest struct {
	Service string   // "" if the configuration has one service only
	Rows    []string // such as A36; none: all
	Ablate  bool
	Dir     string    // for the scratch area; default state_dir
	Out     io.Writer // for people, what it is doing; nil for none
	Without []string  // layers that are left out, to see a drill fail
	Score   int       // see drillScore
	Unit    bool      // see startsInUnit
}

// DrillPlan is what a drill would do.
type DrillPlan struct {
	Service  string          `json:"service"`
	Dir      string          `json:"dir"`
	Attempts []drill.Planned `json:"attempts"`
}

// The hidden commands of a drill, see internal/drill.
const (
	DrillBoxCommand   = "drill-box"
	DrillStageCommand = "drill-stage"
)

// PlanDrill says what Drill would do, and changes nothing.
func PlanDrill(ctx context.Context, configFile string, r DrillRequest) (DrillPlan, error) {
	cfg, err := LoadConfig(ctx, configFile)
	if err != nil {
		return DrillPlan{}, err
	}
	for _, row := range r.Rows {
		if !slices.Contains(drill.Rows(), row) {
			return DrillPlan{}, fmt.Errorf("there are no attempts for row %q; rows: %s", row, strings.Join(drill.Rows(), ", "))
		}
	}
	for _, l := range r.Without {
		if !slices.Contains(drill.Layers(), drill.Layer(l)) {
			return DrillPlan{}, fmt.Errorf("there is no layer %q; layers: %v", l, drill.Layers())
		}
	}
	svc, err := drilledService(cfg, r.Service)
	if err != nil {
		return DrillPlan{}, err
	}
	plan := DrillPlan{Service: svc.Name, Dir: r.Dir, Attempts: drill.Attempts(r.Rows)}
	if plan.Dir == "" {
		plan.Dir = cfg.StateDir
	}
	return plan, nil
}

func drilledService(cfg config.Config, name string) (config.Service, error) {
	if name == "" && len(cfg.Services) == 1 {
		return cfg.Services[0], nil
	}
	i := slices.IndexFunc(cfg.Services, func(s config.Service) bool { return s.Name == name })
	if i < 0 {
		return config.Service{}, fmt.Errorf("%s: say which service to drill with --service; services: %s", cfg.Where("services"), serviceNames(cfg))
	}
	return cfg.Services[i], nil
}

// Drill attacks a scratch copy of a service and reports what stopped it.
func Drill(ctx context.Context, configFile string, r DrillRequest) (drill.Report, error) {
	plan, err := PlanDrill(ctx, configFile, r)
	if err != nil {
		return drill.Report{}, err
	}
	cfg, err := LoadConfig(ctx, configFile)
	if err != nil {
		return drill.Report{}, err
	}
	unit := startsInUnit(ctx, cfg, plan.Service)
	score := drillScore(ctx, cfg, plan.Service)
	if unit {
		score = drillScored // a unit leaves procfs writable, whatever the score
	}
	var uid int
	report, err := drill.Run(ctx, drill.Options{Dir: plan.Dir, Progress: r.Out, Command: func(area string, taken int) []string {
		uid = taken
		argv := []string{DrillBoxCommand, "--config", configFile, "--service", plan.Service, "--area", area, "--uid", strconv.Itoa(uid),
			"--rows", strings.Join(r.Rows, ","), "--without", strings.Join(r.Without, ","), "--score", strconv.Itoa(score), "--unit=" + strconv.FormatBool(unit)}
		if r.Ablate {
			argv = append(argv, "--ablate")
		}
		return argv
	}})
	if uid != 0 {
		err = errors.Join(err, removeDrillGroup(context.WithoutCancel(ctx), plan.Service, uid))
	}
	return report, err
}

// DrillBox is the first process of a drill's namespaces.
func DrillBox(ctx context.Context, configFile, area string, uid int, r DrillRequest, out io.Writer) error {
	cfg, err := LoadConfig(ctx, configFile)
	if err != nil {
		return err
	}
	svc, err := drilledService(cfg, r.Service)
	if err != nil {
		return err
	}
	spec, err := ServiceSpec(cfg, svc.Name)
	if err != nil {
		return err
	}
	inside, err := drillRoot(configFile, area, svc)
	if err != nil {
		return err
	}
	rules, err := drillRules(cfg, svc)
	if err != nil {
		return err
	}
	s := drill.Setup{
		Service: svc.Name, Area: area, Inside: inside, UID: uid, Groups: svc.Groups, Limits: map[string]string{},
		Rules: rules, Backend: cfg.Firewall.Backend, Rows: r.Rows, Ablate: r.Ablate,
		Off: []drill.LayerOn{{Layer: drill.SELinux, Why: selinuxNotDrilled(svc)}},
		Stage: func(layers, argv []string) []string {
			return append([]string{DrillStageCommand, "--config", configFile, "--service", svc.Name, "--root", inside.Root,
				"--layers", strings.Join(layers, ","), "--score", strconv.Itoa(r.Score), "--unit=" + strconv.FormatBool(r.Unit), "--"}, argv...)
		},
	}
	if r.Unit {
		s.Notes = append(s.Notes, unitDrilled)
	}
	if isPostgres(svc) {
		s.Server = svc.Command[0]
	}
	for name, l := range spec.Limits {
		s.Limits[name] = strconv.FormatUint(l.Hard, 10)
	}
	if len(spec.Limits) == 0 {
		s.Off = append(s.Off, drill.LayerOn{Layer: drill.Limits, Why: "the service has no limits"})
	}
	if svc.Landlock.Mode == config.LandlockOff {
		s.Off = append(s.Off, drill.LayerOn{Layer: drill.Landlock, Why: "landlock.mode is off"})
	}
	if svc.Mounts.Mode == config.MountsOff {
		s.Off = append(s.Off, drill.LayerOn{Layer: drill.Mounts, Why: "mounts.mode is off"})
	}
	off, noGroup := drillBound(ctx, svc, uid)
	s.NoGroup = noGroup
	if off != "" {
		s.Off = append(s.Off, drill.LayerOn{Layer: drill.Cgroup, Why: off})
	}
	for _, l := range r.Without {
		s.Off = append(s.Off, drill.LayerOn{Layer: drill.Layer(l), Why: "left out of this drill"})
	}
	return drill.Box(ctx, s, out, os.Stderr)
}

// selinuxNotDrilled says why the layer is off in a drill.
func selinuxNotDrilled(svc config.Service) string {
	if svc.SELinux.Mode == config.SELinuxOff {
		return "selinux.mode is off"
	}
	return "its policy knows nothing of scratch data"
}

// drillRoots are directories that every system has and that hold nothing of it, the
// Filesystem Hierarchy Standard says. The scratch area is mounted on one of them,
// in the drill's mount namespace, since a service's program must not lie below
// directories that others may write to, nor its data below ones that it may not pass.
var drillRoots = []string{"/mnt", "/media", "/srv"}

// drillRoot is one that nothing of the service lies below.
func drillRoot(configFile, area string, svc config.Service) (drill.Inside, error) {
	needed := slices.Concat([]string{configFile, area, svc.DataDir, svc.Command[0]}, svc.Helpers, svc.Landlock.Read, svc.Landlock.Write)
	for _, root := range drillRoots {
		used := slices.ContainsFunc(needed, func(path string) bool { return path == root || strings.HasPrefix(path, root+"/") })
		if info, err := os.Stat(root); err == nil && info.IsDir() && !used {
			return drill.Inside{Root: root}, nil
		}
	}
	return drill.Inside{}, fmt.Errorf("cannot place the scratch area: each of %s is missing or used by the service: make an empty one",
		strings.Join(drillRoots, ", "))
}

// drillRules are what this node would have, were its peers those of the drill.
func drillRules(cfg config.Config, svc config.Service) (firewall.Ruleset, error) {
	self := config.Node{Name: "drill", Role: config.RolePostgres}
	if svc.Profile == config.RolePgpool {
		self.Role = config.RolePgpool
	}
	for _, p := range drill.Node {
		self.Addresses = append(self.Addresses, p.Addr())
	}
	peers := config.Peers{Instance: "drill", Networks: map[string][]netip.Prefix{firewall.NetworkSiblings: {}}, Nodes: []config.Node{
		self,
		{Name: "drill-postgres", Role: config.RolePostgres, Addresses: []netip.Addr{netip.MustParseAddr("10.20.1.11")}},
		{Name: "drill-pgpool", Role: config.RolePgpool, Addresses: []netip.Addr{netip.MustParseAddr("10.20.1.20")}},
	}}
	for _, p := range drill.Sibling {
		peers.Networks[firewall.NetworkSiblings] = append(peers.Networks[firewall.NetworkSiblings], netip.PrefixFrom(p.Addr(), p.Addr().BitLen()))
	}
	flows, err := flowsInForce(cfg)
	if err != nil {
		return firewall.Ruleset{}, err
	}
	for _, f := range flows {
		for _, name := range slices.Concat(f.From, f.To) {
			if name != config.RolePostgres && name != config.RolePgpool && peers.Networks[name] == nil {
				// Some address of its own, where nobody is.
				peers.Networks[name] = []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.30.0.%d/32", len(peers.Networks)))}
			}
		}
	}
	spec, err := firewallSpec(cfg, peers, self, Extra{})
	if err != nil {
		return firewall.Ruleset{}, err
	}
	return firewall.Render(spec)
}

// DrillStage becomes argv under some of the layers of a service, for whose data,
// socket and user the drill's stand in. It returns only on failure.
func DrillStage(ctx context.Context, configFile, service, root string, score int, unit bool, layers, argv []string) error {
	// What is launched is never the service: it is the drill's user, who is not
	// known outside of the drill's namespaces, on the drill's data.
	if os.Getppid() != 1 || len(argv) == 0 {
		return errors.New("cannot drill here: this command is for the use of `pghardend drill` alone")
	}
	cfg, err := LoadConfig(ctx, configFile)
	if err != nil {
		return err
	}
	spec, err := drillSpec(cfg, service, drill.Inside{Root: root}, argv)
	if err != nil {
		return err
	}
	spec.OOMScoreAdj = &score
	if unit {
		if spec, err = withoutGate(spec); err != nil {
			return err
		}
	}
	if slices.Contains(layers, launch.LayerCgroup) {
		if err := inDrillGroup(&spec); err != nil {
			return err
		}
	}
	if allLayers(layers, spec) {
		return launch.Exec(ctx, spec, nil)
	}
	return launch.ExecOnly(ctx, spec, layers, nil)
}

// allLayers says whether only those layers are missing that the service does not
// have. Then its launch is that of the service.
func allLayers(layers []string, spec launch.Spec) bool {
	for _, l := range launch.Layers() {
		has := true
		switch l {
		case launch.LayerLandlock:
			has = spec.Landlock.Mode != "" && spec.Landlock.Mode != launch.LandlockOff
		case launch.LayerMounts:
			has = !spec.Mounts.Off()
		case launch.LayerCgroup:
			has = spec.Cgroup.Mode == launch.CgroupRequired // the drill's own, where it was asked for
		case launch.LayerLimits:
			has = len(spec.Limits) > 0
		case launch.LayerSELinux:
			has = !spec.SELinux.Off()
		}
		if has != slices.Contains(layers, l) {
			return false
		}
	}
	return true
}

// drillSpec is the service's own, for scratch data. What the service may write
// beside its data is left out: the drill must not reach it either.
func drillSpec(cfg config.Config, service string, inside drill.Inside, argv []string) (launch.Spec, error) {
	svc, err := drilledService(cfg, service)
	if err != nil {
		return launch.Spec{}, err
	}
	server := svc.Command[0]
	svc.User, svc.DataDir, svc.Command = drill.User, inside.Data(), argv
	if svc.Landlock.Mode != config.LandlockOff {
		svc.Landlock.Write = []string{inside.Socket()}
	}
	svc.Cgroup.Mode = config.CgroupOff   // see inDrillGroup
	svc.SELinux.Mode = config.SELinuxOff // the policy knows nothing of scratch data
	cfg.Services = []config.Service{svc}
	cfg.RuntimeDir, cfg.StateDir = inside.Run(), filepath.Join(inside.State(), "lib")
	spec, err := ServiceSpec(cfg, svc.Name)
	spec.Mounts.Paths.ReadOnly = standIns(spec.Mounts.Paths.ReadOnly, inside)
	if err != nil || argv[0] == server {
		return spec, err
	}
	act, err := actFeature()
	if err == nil {
		spec.Seccomp, err = spec.Seccomp.With(act)
	}
	return spec, err
}

// drillScore is the OOM score of the drill's processes. They are ended before others
// where the service has a score at all, since the service's children change theirs
// then, and procfs is not read-only. One that is not configured is the running service's.
func drillScore(ctx context.Context, cfg config.Config, service string) int {
	svc, err := drilledService(cfg, service)
	if err != nil {
		return 0
	}
	if svc.OOMScoreAdj == nil {
		pid, err := supervise.Find(ctx, superviseSpec(cfg, svc))
		if err != nil || pid == 0 {
			pid = os.Getpid()
		}
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid))
		if err != nil || strings.TrimSpace(string(data)) == "0" {
			return 0
		}
		return drillScored
	}
	if *svc.OOMScoreAdj == 0 {
		return 0
	}
	return drillScored
}

// drillScored is the highest, which everybody may have.
const drillScored = 1000

// standIns adds the drill's own etc and bin if those that they stand for are in a list.
func standIns(list []string, inside drill.Inside) []string {
	out := slices.Clone(list)
	for place, own := range map[string]string{"/etc": "etc", "/usr": "bin"} {
		if slices.Contains(list, place) {
			out = append(out, filepath.Join(inside.Root, own))
		}
	}
	return out
}

// actFeature is what the program needs that attacks: it is written in Go, which
// profiles without helpers have no room for.
func actFeature() (sandbox.Feature, error) {
	data, err := fs.ReadFile(policies.FS, "seccomp/drill/act.json")
	if err != nil {
		return sandbox.Feature{}, fmt.Errorf("cannot read a built-in file: %w", err)
	}
	return sandbox.ParseFeature("drill", data)
}

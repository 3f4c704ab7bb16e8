package e2e
import ("testing";"time";"slices";"github.com/pghardend/pghardend/pkg/firewall")
func TestEvTmp(t *testing.T){
 b:=fwNew(t, firewall.BackendNFT); w:=b.watch()
 got:=make(chan time.Time,1)
 go func(){ for { c,err:=w.Next(t.Context()); if err!=nil {return}; got<-c.At } }()
 var ds []time.Duration
 fwMust(t,b.node.Do(func() error { for range 500 { 
   for range 1 { start:=time.Now(); if _,err:=evFlood(1); err!=nil {return err}; at:=<-got; ds=append(ds,at.Sub(start)) } }
   return nil }))
 slices.Sort(ds); t.Log(ds[len(ds)/2], ds[len(ds)*99/100], ds[len(ds)-1])
}
